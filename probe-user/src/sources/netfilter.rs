//! The node's netfilter rules, as `iptables-save` and `nft` print them: kube-proxy and ip-masq-agent rewrite addresses
//! there.
//!
//! A kernel may hold rules of both of iptables' back ends, and nftables rules that iptables cannot show: those nft is
//! asked for. What is not read is said, because it may rewrite or drop a packet.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    command::{self, Ended},
    nft::IPTABLES_TABLES,
    raw::Missing,
    unusable::Unusable,
};

/// How long one program may take. 50,000 rules take about a second.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Output beyond this is refused.
const MAX_OUTPUT: u64 = 64 << 20;
/// Tables of the legacy back end in use, of this thread's network namespace.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";
/// Where the programs are when `PATH` does not say, as under `kubectl debug`.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// What a missing fact about a table of nftables' begins with, before family and name.
pub const UNREAD_TABLE: &str = "nftables table ";
/// What `iptables-nft-save` says of a table of its own name that is not its own.
const INCOMPATIBLE: &str = "is incompatible, use 'nft' tool";

/// IPv4 rules of the current network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// `iptables-save`'s output, all tables; `None` where it is not installed.
    pub iptables_save: Option<String>,
    /// `nft -j list ruleset`'s output, where iptables does not show everything.
    pub nft_ruleset: Option<String>,
    /// Rules of the kernel's that are not in the text.
    pub missing: Vec<Missing>,
}

/// Reads the rules with the programs installed here.
///
/// # Errors
///
/// When neither `iptables-save` nor `nft` is installed, or one fails or hangs.
pub fn rules() -> Result<Rules> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).chain(FOLDERS.map(PathBuf::from)).collect();
    Reader { folders, legacy_tables: LEGACY_TABLES.into(), timeout: TIMEOUT }.read()
}

/// Where to look, replaced in tests.
struct Reader {
    folders: Vec<PathBuf>,
    legacy_tables: PathBuf,
    timeout: Duration,
}

impl Reader {
    fn read(&self) -> Result<Rules> {
        let legacy_tables = self.legacy_tables()?;
        let current = self.find("iptables-nft-save").or_else(|| self.find("iptables-save"));
        let legacy = self.find("iptables-legacy-save").filter(|_| !legacy_tables.is_empty());
        let nft = self.find("nft");
        let Some(first) = current.as_ref().or(legacy.as_ref()) else {
            let Some(nft) = nft else {
                bail!(Unusable::new(
                    "neither `iptables-save` nor `nft` on this node, so that what kube-proxy or ip-masq-agent rewrites is not known",
                    "run plsprobe where iptables is installed",
                ));
            };
            return self.by_nft_alone(&nft, &legacy_tables);
        };
        let mut missing = Vec::new();
        let mut add = |what: &str, why: String| missing.push(Missing { what: what.to_owned(), why });
        // Beside each other: a program takes milliseconds to start, and an answer waits for both.
        let (text, others) = thread::scope(|scope| {
            let others = nft.as_ref().map(|nft| scope.spawn(|| self.other_nft_tables(nft)));
            let text = self.run(first, &[]);
            (
                text,
                others.map_or_else(|| Ok(Vec::new()), |asked| asked.join().expect("asking does not panic")),
            )
        });
        let (mut text, others) = (text?, others?);
        if current.is_some() && !legacy_tables.is_empty() {
            match legacy {
                Some(legacy) => {
                    let other = self.run(&legacy, &[])?;
                    if has_rules(&text) && has_rules(&other) {
                        let why = "rules of both back ends, nft and legacy, whose order is not known";
                        add("order of netfilter rules", why.to_owned());
                    }
                    text += &other;
                }
                None if current.is_some_and(|program| program.ends_with("iptables-nft-save")) => {
                    let tables = legacy_tables.join(", ");
                    add("legacy iptables", format!("no `iptables-legacy-save` here to read tables {tables}"));
                }
                None => {}
            }
        }
        let is_incompatible = text.contains(INCOMPATIBLE);
        let mut nft_ruleset = None;
        if is_incompatible || !others.is_empty() {
            match nft.as_ref().map(|nft| self.run(nft, &["-j", "list", "ruleset"])) {
                Some(Ok(ruleset)) => nft_ruleset = Some(ruleset),
                refused => {
                    let why = refused.map_or_else(
                        || "only nft can show it, which is not installed".to_owned(),
                        |refused| refused.map_or_else(|error| format!("{error:#}"), |_| String::new()),
                    );
                    let incompatible =
                        is_incompatible.then(|| "of the same name as one of iptables'".to_owned());
                    for table in others.into_iter().chain(incompatible) {
                        add(&format!("{UNREAD_TABLE}{table}"), why.clone());
                    }
                }
            }
        }
        Ok(Rules { iptables_save: Some(text), nft_ruleset, missing })
    }

    /// Where iptables is not installed: nft shows the rules of its newer back end too.
    fn by_nft_alone(&self, nft: &Path, legacy_tables: &[String]) -> Result<Rules> {
        let nft_ruleset = Some(self.run(nft, &["-j", "list", "ruleset"])?);
        let mut missing = Vec::new();
        if !legacy_tables.is_empty() {
            let tables = legacy_tables.join(", ");
            let why = format!("no `iptables-legacy-save` here to read tables {tables}");
            missing.push(Missing { what: "legacy iptables".to_owned(), why });
        }
        Ok(Rules { iptables_save: None, nft_ruleset, missing })
    }

    /// Tables of the legacy back end. A kernel without it has no such file.
    fn legacy_tables(&self) -> Result<Vec<String>> {
        match fs::read_to_string(&self.legacy_tables) {
            Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => {
                Err(error).with_context(|| format!("failed to read `{}`", self.legacy_tables.display()))
            }
        }
    }

    /// Tables of nftables that IPv4 packets pass and iptables does not know.
    fn other_nft_tables(&self, nft: &Path) -> Result<Vec<String>> {
        let tables = self.run(nft, &["list", "tables"])?;
        // `table ip kube-proxy`: a family and a name.
        let others = tables.lines().filter_map(|line| {
            let (family, name) = line.strip_prefix("table ")?.split_once(' ')?;
            let known = family == "ip" && IPTABLES_TABLES.contains(&name);
            (matches!(family, "ip" | "inet" | "netdev") && !known).then(|| format!("{family} {name}"))
        });
        Ok(others.collect())
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(program)).find(|path| path.is_file())
    }

    /// What a program prints. It is killed when it takes too long.
    fn run(&self, program: &Path, arguments: &[&str]) -> Result<String> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C").stderr(Stdio::piped());
        let ended = command::run(&mut command, self.timeout, MAX_OUTPUT)
            .with_context(|| format!("failed to run `{name}`"))?;
        let Some(Ended { status, stdout, stderr }) = ended else {
            bail!("`{name}` took longer than {:?} and was ended", self.timeout);
        };
        let output = stdout.with_context(|| format!("failed to read what `{name}` prints"))?;
        if !status.success() {
            let errors = stderr.unwrap_or_default();
            let first = errors.lines().next().unwrap_or("no message");
            bail!("`{name}` failed with {status}: {first}");
        }
        Ok(output)
    }
}

fn has_rules(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("-A ") || line.starts_with('['))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const NFT: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";

    /// A node on which these scripts are the programs.
    fn node(programs: &[(&str, &str)], legacy_tables: Option<&str>) -> (tempfile::TempDir, Reader) {
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in programs {
            // Written by another process: a file that any thread's child still has open for writing cannot be run.
            let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\" && chmod 700 \"$1\"";
            let written = Command::new("sh")
                .args(["-c", write, "sh"])
                .arg(folder.path().join(name))
                .arg(script)
                .status();
            assert!(written.unwrap().success());
        }
        let tables = folder.path().join("ip_tables_names");
        if let Some(text) = legacy_tables {
            fs::write(&tables, text).unwrap();
        }
        let folders = vec![folder.path().to_owned()];
        let reader = Reader { folders, legacy_tables: tables, timeout: Duration::from_secs(20) };
        (folder, reader)
    }

    #[track_caller]
    fn check(programs: &[(&str, &str)], legacy_tables: Option<&str>, text: &str, missing: &[(&str, &str)]) {
        let (_folder, reader) = node(programs, legacy_tables);
        let rules = reader.read().unwrap();
        let found: Vec<(&str, &str)> =
            rules.missing.iter().map(|missing| (missing.what.as_str(), missing.why.as_str())).collect();
        assert_eq!((rules.iptables_save.as_deref().unwrap(), found.as_slice()), (text, missing));
    }

    #[test]
    fn one_back_end() {
        let nft = format!("printf '{}'", NFT.replace('\n', "\\n"));
        check(&[("iptables-nft-save", &nft), ("iptables-save", "exit 1")], None, NFT, &[]);
        check(&[("iptables-save", &nft)], Some(""), NFT, &[]);
        // Not asked: nothing is there, and asking might load modules.
        check(&[("iptables-nft-save", &nft), ("iptables-legacy-save", "exit 1")], Some(""), NFT, &[]);
        check(&[("iptables-legacy-save", &nft)], Some("nat\n"), NFT, &[]);
    }

    #[test]
    fn what_is_not_read_is_said() {
        let nft = format!("printf '{}'", NFT.replace('\n', "\\n"));
        let both = format!("{NFT}*raw\n-A OUTPUT -j ACCEPT\nCOMMIT\n");
        check(
            &[
                ("iptables-nft-save", &nft),
                ("iptables-legacy-save", "printf '*raw\\n-A OUTPUT -j ACCEPT\\nCOMMIT\\n'"),
            ],
            Some("raw\n"),
            &both,
            &[(
                "order of netfilter rules",
                "rules of both back ends, nft and legacy, whose order is not known",
            )],
        );
        check(
            &[("iptables-nft-save", &nft)],
            Some("nat\nfilter\n"),
            NFT,
            &[("legacy iptables", "no `iptables-legacy-save` here to read tables nat, filter")],
        );
        let tables = "printf 'table ip nat\\ntable ip6 x\\ntable ip kube-proxy\\ntable inet firewalld\\n'";
        check(
            &[
                ("iptables-nft-save", &nft),
                (
                    "nft",
                    &format!("[ \"$*\" = 'list tables' ] && {tables} || {{ echo 'no JSON' >&2; exit 1; }}"),
                ),
            ],
            None,
            NFT,
            &[
                ("nftables table ip kube-proxy", "`nft` failed with exit status: 1: no JSON"),
                ("nftables table inet firewalld", "`nft` failed with exit status: 1: no JSON"),
            ],
        );
        check(
            &[("iptables-nft-save", "echo \"# Table \\`filter' is incompatible, use 'nft' tool.\"")],
            None,
            "# Table `filter' is incompatible, use 'nft' tool.\n",
            &[(
                "nftables table of the same name as one of iptables'",
                "only nft can show it, which is not installed",
            )],
        );
    }

    #[test]
    fn nft_shows_what_iptables_does_not() {
        let iptables = format!("printf '{}'", NFT.replace('\n', "\\n"));
        let script = |tables: &str| {
            format!(
                "case \"$*\" in 'list tables') printf '{tables}' ;; '-j list ruleset') echo '{{\"nftables\": []}}' ;; *) exit 9 ;; esac"
            )
        };
        let read = |programs: &[(&str, &str)], legacy| {
            let (_folder, reader) = node(programs, legacy);
            reader.read().unwrap()
        };
        let (own, others) = (script("table ip nat\\ntable ip6 x\\n"), script("table ip kube-proxy\\n"));
        let rules = read(&[("iptables-save", &iptables), ("nft", &own)], None);
        assert_eq!((rules.nft_ruleset, rules.missing.len()), (None, 0), "iptables shows it all");
        let rules = read(&[("iptables-save", &iptables), ("nft", &others)], None);
        assert_eq!(rules.nft_ruleset.as_deref(), Some("{\"nftables\": []}\n"));
        assert_eq!((rules.iptables_save.as_deref(), rules.missing.len()), (Some(NFT), 0));
        let rules = read(&[("nft", &own)], Some("nat\n"));
        assert_eq!((rules.iptables_save.as_deref(), rules.nft_ruleset.is_some()), (None, true));
        assert_eq!(rules.missing[0].what, "legacy iptables");
    }

    #[test]
    fn programs_that_fail() {
        let error = |programs: &[(&str, &str)]| {
            let (_folder, reader) = node(programs, None);
            format!("{:#}", reader.read().unwrap_err())
        };
        assert_eq!(
            error(&[]),
            "neither `iptables-save` nor `nft` on this node, so that what kube-proxy or ip-masq-agent rewrites is not known; \
             run plsprobe where iptables is installed"
        );
        assert_eq!(
            error(&[("iptables-nft-save", "echo 'Permission denied (you must be root)' >&2; exit 4")]),
            "`iptables-nft-save` failed with exit status: 4: Permission denied (you must be root)"
        );
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let (folder, reader) = node(&[("iptables-save", "echo $$ >$0.pid; exec sleep 60")], None);
        let reader = Reader { timeout: Duration::from_millis(500), ..reader };
        let begun = Instant::now();
        let error = reader.read().unwrap_err().to_string();
        assert_eq!(error, "`iptables-save` took longer than 500ms and was ended");
        assert!(begun.elapsed() < Duration::from_secs(20));
        let pid = fs::read_to_string(folder.path().join("iptables-save.pid")).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }
}
