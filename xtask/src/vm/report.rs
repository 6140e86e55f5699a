//! What came of each kernel, in words and as a verdict.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::answers::{Compared, PROBES};

/// One kernel of a run.
pub(crate) struct Row {
    /// `6.1`
    pub(crate) series: String,
    /// The Debian suite it is from.
    pub(crate) suite: String,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

/// What came of a kernel.
pub(crate) enum Outcome {
    /// It could not be fetched, and why.
    NotToBeHad(String),
    /// It was booted.
    Ran(Guest),
}

/// What a guest showed.
pub(crate) struct Guest {
    /// `6.1.0-56-cloud-amd64`
    pub(crate) release: String,
    /// How many payloads it was given.
    pub(crate) payloads: usize,
    /// Our programs, and whether the kernel took each.
    pub(crate) programs: BTreeMap<String, Result<(), String>>,
    /// Hooks by the means they were attached by.
    pub(crate) hooks: BTreeMap<String, usize>,
    /// The scenarios that were compared.
    pub(crate) compared: Vec<Compared>,
    /// Whether there was a host's run to compare with.
    pub(crate) beside_host: bool,
    /// What went wrong otherwise.
    pub(crate) trouble: Vec<String>,
    /// From the image to the guest's end.
    pub(crate) seconds: u64,
}

impl Guest {
    /// Everything that must not be.
    fn failures(&self) -> Vec<String> {
        let refused = self.programs.iter().filter_map(|(name, outcome)| {
            outcome.as_ref().err().map(|why| format!("`{name}` is not loaded: {why}"))
        });
        let differ = self.compared.iter().flat_map(|compared| {
            compared.differences.iter().map(|difference| format!("{}: {difference}", compared.world))
        });
        self.trouble.iter().cloned().chain(refused).chain(differ).collect()
    }

    /// `9 of 9`
    pub(crate) fn loaded(&self) -> String {
        let loaded = self.programs.values().filter(|outcome| outcome.is_ok()).count();
        format!("{loaded} of {}", self.programs.len())
    }

    /// `7 of 7`
    pub(crate) fn identical(&self) -> String {
        let identical = self.compared.iter().filter(|compared| compared.differences.is_empty()).count();
        format!("{identical} of {}", self.compared.len())
    }

    /// By which means Cilium's notifications were seen.
    pub(crate) fn verdicts_by(&self) -> &str {
        let is_probe = |means: &&String| PROBES.contains(&means.as_str());
        self.hooks.keys().find(is_probe).map_or("none", String::as_str)
    }

    /// `1 fentry, 6 legacy tc`
    pub(crate) fn hooks(&self) -> String {
        let hooks: Vec<String> = self.hooks.iter().map(|(means, count)| format!("{count} {means}")).collect();
        hooks.join(", ")
    }
}

impl Row {
    /// One line, and one more for each thing that is wrong.
    pub(crate) fn text(&self) -> String {
        match &self.outcome {
            Outcome::NotToBeHad(why) => format!("{:<5} not to be had: {why}", self.series),
            Outcome::Ran(guest) => {
                let answered = if guest.beside_host { "as on this machine" } else { "compared with nothing" };
                let line = format!(
                    "{:<5} {}: {} payloads, {} programs loaded, hooks by {}, {} scenarios {answered}, {} s",
                    self.series,
                    guest.release,
                    guest.payloads,
                    guest.loaded(),
                    guest.hooks(),
                    guest.identical(),
                    guest.seconds
                );
                std::iter::once(line).chain(guest.failures()).collect::<Vec<_>>().join("\n  ")
            }
        }
    }
}

/// What to say of all kernels.
///
/// # Errors
///
/// If one failed, or with `require` could not be had.
pub(crate) fn judge(rows: &[Row], require: bool) -> Result<String> {
    let failed = |row: &&Row| match &row.outcome {
        Outcome::NotToBeHad(_) => require,
        Outcome::Ran(guest) => !guest.failures().is_empty(),
    };
    let failed: Vec<&str> = rows.iter().filter(failed).map(|row| row.series.as_str()).collect();
    let text: Vec<String> = rows.iter().map(Row::text).collect();
    let text = text.join("\n          ");
    if !failed.is_empty() {
        bail!("on Linux {}:\n          {text}", failed.join(", "));
    }
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A guest in which all went well.
    pub(crate) fn guest(release: &str) -> Guest {
        Guest {
            release: release.to_owned(),
            payloads: 5,
            programs: BTreeMap::from([("a".to_owned(), Ok(())), ("b".to_owned(), Ok(()))]),
            hooks: BTreeMap::from([("fentry".to_owned(), 1), ("legacy tc".to_owned(), 6)]),
            compared: vec![Compared { world: "none/aks".to_owned(), differences: Vec::new() }],
            beside_host: true,
            trouble: Vec::new(),
            seconds: 42,
        }
    }

    pub(crate) fn row(series: &str, outcome: Outcome) -> Row {
        Row { series: series.to_owned(), suite: "bookworm".to_owned(), outcome }
    }

    #[test]
    fn a_kernel_is_one_line() {
        assert_eq!(
            row("6.1", Outcome::Ran(guest("6.1.0-56"))).text(),
            "6.1   6.1.0-56: 5 payloads, 2 of 2 programs loaded, hooks by 1 fentry, 6 legacy tc, 1 of 1 scenarios as on \
             this machine, 42 s"
        );
    }

    #[test]
    fn everything_that_must_not_be_fails_and_is_named() {
        let mut bad = guest("6.1.0-56");
        bad.programs.insert("c".to_owned(), Err("EINVAL".to_owned()));
        bad.trouble.push("`offsets` exited with 1".to_owned());
        bad.compared[0].differences.push("text, line 1".to_owned());
        let text = format!("{:#}", judge(&[row("6.1", Outcome::Ran(bad))], false).unwrap_err());
        for part in [
            "on Linux 6.1:",
            "2 of 3 programs loaded",
            "0 of 1 scenarios",
            "`offsets` exited with 1",
            "`c` is not loaded: EINVAL",
            "none/aks: text, line 1",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_kernel_that_cannot_be_had_is_named_and_fails_where_it_is_required() {
        let rows =
            [row("6.1", Outcome::Ran(guest("6.1.0-56"))), row("7", Outcome::NotToBeHad("no mirror".into()))];
        assert!(judge(&rows, false).unwrap().ends_with("7     not to be had: no mirror"));
        assert!(judge(&rows, true).unwrap_err().to_string().starts_with("on Linux 7:"));
    }
}
