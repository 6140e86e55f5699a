//! What of the node could show that plsprobe was there.
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter, ProgInfoQueryOptions};
use probe_lab::{Lab, Ns};
use probe_user::sources::addresses;
use probe_user::sources::classifiers::{self, Attachment};

/// The map through which filters hand on to the programs that look.
const LOOKERS: &str = "map LOOKERS";
/// What the names of our filters begin with.
const OURS: &str = "plsprobe_";

/// A lab's interfaces, qdiscs, classifiers, pins and abstract sockets, a line each; without the numbers that the
/// kernel gives to whatever is made anew. Classifiers are in the order in which they run, all else is sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State(Vec<String>);

impl State {
    pub(crate) fn of(lab: &Lab) -> Self {
        let mut lines: Vec<_> = Ns::ALL.into_iter().flat_map(|ns| interfaces(lab, ns)).collect();
        let (classifiers, sockets) = lab.run_in(Ns::Node, || (classifiers(), abstract_sockets())).unwrap();
        lines.extend(sockets);
        collect_pins(lab.bpffs(), &mut lines);
        lines.sort();
        lines.extend(classifiers);
        Self(lines)
    }

    /// Without what a killed plsprobe leaves.
    pub(crate) fn without_our_filters(mut self) -> Self {
        self.0.retain(|line| !line.contains(OURS));
        self
    }

    /// Says what is there that was not, and what is not there that was.
    pub(crate) fn same_as(&self, before: &Self) -> Result<(), String> {
        if self == before {
            return Ok(());
        }
        let beyond = |these: &Self, those: &Self| -> Vec<String> {
            these.0.iter().filter(|line| !those.0.contains(line)).cloned().collect()
        };
        let (new, gone) = (beyond(self, before), beyond(before, self));
        Err(format!("new: {new:#?}\ngone: {gone:#?}\n(neither: the order has changed)"))
    }
}

/// Interfaces and qdiscs of one namespace.
fn interfaces(lab: &Lab, ns: Ns) -> Vec<String> {
    let name = lab.netns(ns).name();
    let links = run(Command::new("ip").args(["-n", name, "-br", "link", "show"]), "");
    let qdiscs = run(Command::new("tc").args(["-n", name, "qdisc", "show"]), "");
    // `name@peer state address <flags>`; the peer may be shown by its number.
    let names = links.lines().filter_map(|line| line.split(['@', ' ']).next());
    let lines = names.map(|name| format!("interface {name}")).chain(qdiscs.lines().map(str::to_owned));
    lines.map(|line| format!("{}: {}", ns.suffix(), line.trim())).collect()
}

/// Classifiers of the calling thread's network namespace, by interface.
fn classifiers() -> Vec<String> {
    let mut links = addresses::network().unwrap().links;
    links.sort_by(|one, other| one.name.cmp(&other.name));
    let show = |name: &str| format!("filter show dev {name} ingress\nfilter show dev {name} egress\n");
    let shows: String = links.iter().map(|link| show(&link.name)).collect();
    let filters = run(Command::new("tc").args(["-batch", "-"]), &shows);
    // Each priority is listed first without a filter.
    let filters = filters.lines().filter(|line| line.contains(" handle "));
    let listed = classifiers::classifiers(&links).unwrap();
    let tcx = listed.iter().filter(|listed| listed.attachment == Attachment::Tcx);
    let tcx = tcx.map(|listed| format!("tcx {} {} {}", listed.dev, listed.direction, listed.name));
    filters.map(without_id).chain(tcx).collect()
}

/// Abstract sockets of the calling thread's network namespace.
fn abstract_sockets() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/unix").unwrap();
    let names = text.lines().filter_map(|line| line.split_whitespace().nth(7));
    names.filter(|name| name.starts_with('@')).map(|name| format!("socket {name}")).collect()
}

/// A line of `tc filter show` without the program's id.
fn without_id(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if word == "id" {
            words.next();
        }
    }
    kept.join(" ")
}

fn collect_pins(folder: &Path, pins: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        pins.push(format!("pin {}", path.display()));
        if path.is_dir() {
            collect_pins(&path, pins);
        }
    }
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Programs, maps and links by their ids, which the kernel does not give out twice in a long time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KernelObjects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl KernelObjects {
    /// Our own among the objects that a process has open: programs by their names, and what belongs to these.
    pub(crate) fn of(process: u32) -> Self {
        let folder = format!("/proc/{process}/fdinfo");
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        // A descriptor that it has just closed has no file any more, nor has a process that has ended.
        let descriptors: Vec<_> =
            files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect();
        let options = ProgInfoQueryOptions::default().include_map_ids(true);
        let mut objects = Self::default();
        let open: BTreeSet<_> = descriptors.iter().filter_map(|text| field(text, "prog_id:")).collect();
        for program in ProgInfoIter::with_query_opts(options) {
            if open.contains(&program.id) && program.name.to_string_lossy().starts_with(OURS) {
                objects.programs.insert(program.id);
                objects.maps.extend(program.map_ids);
            }
        }
        let ours = |text: &&String| field(text, "prog_id:").is_some_and(|id| objects.programs.contains(&id));
        objects.links = descriptors.iter().filter(ours).filter_map(|text| field(text, "link_id:")).collect();
        objects
    }

    pub(crate) fn extend(&mut self, others: &Self) {
        self.programs.extend(&others.programs);
        self.maps.extend(&others.maps);
        self.links.extend(&others.links);
    }

    /// Whether the kernel has freed all of them, but for the program arrays that it leaks: [`Self::leaked`].
    pub(crate) fn all_gone(&self) -> Result<(), String> {
        self.only_left(|object| object == LOOKERS)
    }

    /// Program arrays that the kernel (6.18) has lost count of: whoever opens one by its id, as everything does that
    /// walks all maps, in the moment in which the kernel empties it because nobody has it open any more, has it emptied
    /// twice and one reference never given back. Other processes of this machine may do so at any time.
    pub(crate) fn leaked(&self) -> usize {
        self.others_left().iter().filter(|object| *object == LOOKERS).count()
    }

    /// Whether the kernel has freed all that looks at packets or keeps anything: of a killed plsprobe there are left
    /// the programs that filters hold, and the empty map through which these handed on.
    pub(crate) fn only_husks_left(&self) -> Result<(), String> {
        self.only_left(|object| match object.strip_prefix("program plsprobe_") {
            Some(name) => {
                ["uplink", "pod", "host", "vf", "overlay"].contains(&name.split('_').next().unwrap_or(name))
            }
            None => object == LOOKERS,
        })
    }

    /// Programs first: see [`Self::leaked`].
    fn only_left(&self, may_stay: impl Fn(&str) -> bool) -> Result<(), String> {
        for left in [Self::programs_left, Self::others_left] {
            let left = left(self);
            let wrong: Vec<_> = left.iter().filter(|object| !may_stay(object)).collect();
            if !wrong.is_empty() {
                return Err(format!("left in the kernel: {wrong:?}"));
            }
        }
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.programs.len() + self.maps.len() + self.links.len()
    }

    fn programs_left(&self) -> Vec<String> {
        let programs = ProgInfoIter::default().filter(|program| self.programs.contains(&program.id));
        programs.map(|program| format!("program {}", program.name.to_string_lossy())).collect()
    }

    fn others_left(&self) -> Vec<String> {
        let maps = MapInfoIter::default().filter(|map| self.maps.contains(&map.id));
        let links = LinkInfoIter::default().filter(|link| self.links.contains(&link.id));
        maps.map(|map| format!("map {}", map.name.to_string_lossy()))
            .chain(links.map(|link| format!("link {}", link.id)))
            .collect()
    }
}

/// A number in a file below `fdinfo`.
fn field(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}
