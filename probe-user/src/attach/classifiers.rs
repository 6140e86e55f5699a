//! Our classifiers at interfaces: beside Cilium's, before it, and gone without a trace.
use std::fmt;
use std::io;
use std::ops::Range;

use anyhow::{Context as _, Result, anyhow};
use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{
    NlOptions, SchedClassifierLinkId, TcAttachOptions, TcAttachType, TcError, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::{ProgramError, SchedClassifier};
use probe_common::HookPoint;

use super::loading::{describe_load, load_again};
use super::{Hook, HookKind, HookState, alone, borrow};
use crate::sources::classifiers as neighbours;
use crate::sys::{ifindex, interface_name};

/// Handles of our legacy filters: for each plsprobe that traces here two, since it attaches anew before it detaches.
///
/// Never one of the kernel's choice, which is the lowest that is free: where Cilium has yet to come that is 1, Cilium's
/// filter would take the place of ours, and we would remove it later, believing it ours.
const HANDLES: Range<u32> = 0x706c_7300..0x706c_7300 + 2 * alone::SLOTS;

/// What an interface is to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It leads to the network.
    Uplink,
    /// It is the host side of a pod's veth.
    Pod,
    /// It is `cilium_host`, between the host's stack and Cilium.
    CiliumHost,
    /// It is the virtual function below the uplink (accelerated networking).
    VirtualFunction,
    /// It is `cilium_vxlan` or `cilium_geneve`, to other nodes.
    Overlay,
}

impl Role {
    /// The program for each direction of an interface in this role.
    const fn programs(self) -> [(Direction, &'static str); 2] {
        match self {
            Self::Uplink => {
                [(Direction::Ingress, "plsprobe_uplink_in"), (Direction::Egress, "plsprobe_uplink_out")]
            }
            Self::Pod => [(Direction::Ingress, "plsprobe_pod_out"), (Direction::Egress, "plsprobe_pod_in")],
            Self::CiliumHost => {
                [(Direction::Ingress, "plsprobe_host_in"), (Direction::Egress, "plsprobe_host_out")]
            }
            Self::VirtualFunction => {
                [(Direction::Ingress, "plsprobe_vf_in"), (Direction::Egress, "plsprobe_vf_out")]
            }
            Self::Overlay => {
                [(Direction::Ingress, "plsprobe_overlay_in"), (Direction::Egress, "plsprobe_overlay_out")]
            }
        }
    }

    const fn point(self, direction: Direction) -> HookPoint {
        match direction {
            Direction::Ingress => self.points().0,
            Direction::Egress => self.points().1,
        }
    }

    /// What ingress and egress of an interface in this role are to the node.
    pub const fn points(self) -> (HookPoint, HookPoint) {
        match self {
            Self::Uplink => (HookPoint::UplinkIn, HookPoint::UplinkOut),
            Self::Pod => (HookPoint::PodOut, HookPoint::PodIn),
            Self::CiliumHost => (HookPoint::HostIn, HookPoint::HostOut),
            Self::VirtualFunction => (HookPoint::VfIn, HookPoint::VfOut),
            Self::Overlay => (HookPoint::OverlayIn, HookPoint::OverlayOut),
        }
    }

    const ALL: [Self; 5] = [Self::Uplink, Self::Pod, Self::CiliumHost, Self::VirtualFunction, Self::Overlay];
}

/// An interface to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What it is to the node.
    pub role: Role,
}

/// One of our classifiers at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    /// The interface's name.
    pub interface: String,
    /// Interface and direction: `eth0 ingress`.
    pub place: String,
    /// The program's id.
    pub program: u32,
}

/// Direction of a classifier, as tc says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

impl From<probe_model::cilium::Direction> for Direction {
    fn from(direction: probe_model::cilium::Direction) -> Self {
        match direction {
            probe_model::cilium::Direction::Ingress => Self::Ingress,
            probe_model::cilium::Direction::Egress => Self::Egress,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// One classifier that was wanted.
#[derive(Debug)]
struct Attached {
    interface: Interface,
    ifindex: u32,
    direction: Direction,
    program: &'static str,
    link: Option<SchedClassifierLinkId>,
    hook: Hook,
}

impl Attached {
    fn has_gone(&self) -> bool {
        ifindex(&self.interface.name) != Some(self.ifindex)
    }

    fn gone(&self) -> HookState {
        HookState::Lost(format!("interface `{}` has gone", self.interface.name))
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Classifiers(Vec<Attached>);

impl Classifiers {
    pub(super) fn attach(ebpf: &mut Ebpf, interfaces: &[Interface]) -> Self {
        let mut classifiers = Self::default();
        for interface in interfaces {
            classifiers.attach_interface(ebpf, interface);
        }
        classifiers
    }

    fn attach_interface(&mut self, ebpf: &mut Ebpf, interface: &Interface) {
        for (direction, program) in interface.role.programs() {
            let attached = have_look(ebpf, interface.role.point(direction), program)
                .and_then(|()| attach(ebpf, &interface.name, direction, program));
            let (link, state) = match attached {
                Ok((link, means)) => (Some(link), HookState::Attached(means)),
                Err(error) => (None, HookState::Refused(format!("{error:#}"))),
            };
            self.0.push(Attached {
                interface: interface.clone(),
                ifindex: ifindex(&interface.name).unwrap_or(0),
                direction,
                program,
                link,
                hook: Hook {
                    kind: HookKind::Classifier,
                    place: format!("{} {direction}", interface.name),
                    state,
                },
            });
        }
    }

    pub(super) fn hooks(&self) -> impl Iterator<Item = &Hook> {
        self.0.iter().map(|attached| &attached.hook)
    }

    /// An interface that goes takes its filters with it and tells nobody: seen by its index.
    pub(super) fn recheck(&mut self, ebpf: &mut Ebpf, interfaces: &[Interface]) -> Vec<Hook> {
        let mut changed = Vec::new();
        for attached in &mut self.0 {
            if attached.link.is_none() || !attached.has_gone() {
                continue;
            }
            // The kernel has already removed the filter; forgetting the link must not touch a new interface that
            // took the name. Its removal by the old index answers ENODEV, which is what we know.
            if let (Some(link), Ok(program)) = (attached.link.take(), classifier(ebpf, attached.program)) {
                let _ = program.detach(link);
            }
            attached.hook.state = attached.gone();
            changed.push(attached.hook.clone());
        }
        for interface in interfaces {
            let now = ifindex(&interface.name);
            let known = self
                .0
                .iter()
                .any(|attached| attached.interface == *interface && now == Some(attached.ifindex));
            if !known && now.is_some() {
                // What was there before it has gone.
                self.0.retain(|attached| attached.link.is_some() || attached.interface != *interface);
                let before = self.0.len();
                self.attach_interface(ebpf, interface);
                changed.extend(self.0[before..].iter().map(|attached| attached.hook.clone()));
            }
        }
        changed
    }

    /// Those that are attached, or should be.
    pub(super) fn ours(&self, ebpf: &Ebpf) -> Vec<Ours> {
        let ours = |attached: &Attached| {
            attached.link.as_ref()?;
            Some(Ours {
                interface: attached.interface.name.clone(),
                place: attached.hook.place.clone(),
                program: ebpf.program(attached.program)?.info().ok()?.id(),
            })
        };
        self.0.iter().filter_map(ours).collect()
    }

    /// Detaches and attaches anew at one place, which brings ours to the front again.
    pub(super) fn reattach(&mut self, ebpf: &mut Ebpf, place: &str) -> Option<Hook> {
        let attached =
            self.0.iter_mut().find(|attached| attached.hook.place == place && attached.link.is_some())?;
        let direction = attached.direction;
        // The new one first: no packet passes unseen in between, and a refusal leaves the old one.
        let renewed = attach(ebpf, &attached.interface.name, direction, attached.program);
        attached.hook.state = match renewed {
            Ok((link, means)) => {
                let old = attached.link.replace(link);
                if let (Some(old), Ok(program)) = (old, classifier(ebpf, attached.program))
                    && let Err(error) = program.detach(old)
                    // Removed by somebody else: that may be why we are here.
                    && !is_gone(&error)
                {
                    HookState::Refused(format!("attached anew, but the old one stayed: {error}"))
                } else {
                    HookState::Attached(means)
                }
            }
            Err(_) if attached.has_gone() => attached.gone(),
            Err(error) => HookState::Lost(format!("another filter runs before ours: {error:#}")),
        };
        Some(attached.hook.clone())
    }

    /// Attaches anew at one place where somebody has removed ours.
    pub(super) fn restore(&mut self, ebpf: &mut Ebpf, place: &str) -> Option<Hook> {
        let attached =
            self.0.iter_mut().find(|attached| attached.hook.place == place && attached.link.is_some())?;
        // First, since the new one may be given its handle. That it is not there is what we know.
        if let (Some(link), Ok(program)) = (attached.link.take(), classifier(ebpf, attached.program)) {
            let _ = program.detach(link);
        }
        attached.hook.state =
            match attach(ebpf, &attached.interface.name, attached.direction, attached.program) {
                Ok((link, means)) => {
                    attached.link = Some(link);
                    HookState::Attached(means)
                }
                // The kernel tells of its filters' end before it tells of the interface's own.
                Err(_) if attached.has_gone() => attached.gone(),
                Err(error) => HookState::Lost(format!("somebody has removed our filter: {error:#}")),
            };
        Some(attached.hook.clone())
    }

    /// Detaches each by its own handle, so that nothing of anybody else's can go with it.
    pub(super) fn detach(&mut self, ebpf: &mut Ebpf) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        for attached in &mut self.0 {
            let Some(link) = attached.link.take() else { continue };
            let detached =
                classifier(ebpf, attached.program).and_then(|program| match program.detach(link) {
                    Err(error) if is_gone(&error) => Ok(()),
                    detached => Ok(detached?),
                });
            if let Err(error) = detached {
                errors.push(error.context(format!("failed to detach from `{}`", attached.hook.place)));
            }
        }
        errors
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("our eBPF object has no program `{name}`; rebuild plsprobe"))?;
    Ok(program.try_into()?)
}

fn load_classifier(program: &mut SchedClassifier) -> Result<()> {
    match load_again(|| program.load()) {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(error) => Err(describe_load(error)),
    }
}

/// The program that looks at packets for the one that is attached.
fn looker(attached: &str) -> String {
    attached.replacen("plsprobe_", "plsprobe_look_", 1)
}

/// The programs that look at packets at these interfaces.
pub(super) fn lookers(interfaces: &[Interface]) -> impl Iterator<Item = String> {
    let programs = interfaces.iter().flat_map(|interface| interface.role.programs());
    programs.map(|(_, attached)| looker(attached))
}

/// Loads the program that looks at packets for `attached`, and has that one hand on to it.
///
/// The map between them is what dies with this process: see `LOOKERS` in the eBPF crate.
fn have_look(ebpf: &mut Ebpf, point: HookPoint, attached: &str) -> Result<()> {
    let program = classifier(ebpf, &looker(attached))?;
    load_classifier(program)?;
    let fd = program.fd()?.try_clone()?;
    let mut lookers: ProgramArray<&mut MapData> = borrow(ebpf, "LOOKERS")?;
    lookers.set(point as u32, &fd, 0).with_context(|| format!("failed to have `{attached}` look"))
}

/// Attaches one program before whoever is there.
fn attach(
    ebpf: &mut Ebpf,
    interface: &str,
    direction: Direction,
    name: &str,
) -> Result<(SchedClassifierLinkId, &'static str)> {
    let program = classifier(ebpf, name)?;
    load_classifier(program)?;
    let (link, means) = if is_by_tcx(interface) {
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        (program.attach_with_options(interface, direction.attach_type(), order), "tcx")
    } else {
        add_clsact(interface)?;
        (attach_legacy(program, interface, direction), "legacy tc")
    };
    let link = link.with_context(|| format!("failed to attach `{name}` by {means}"))?;
    Ok((link, means))
}

/// Cilium's filter has priority 1, handle 1 and ends the chain. Within one priority `cls_bpf` runs the newest first,
/// so the same priority sees every packet before it.
fn attach_legacy(
    program: &mut SchedClassifier,
    interface: &str,
    direction: Direction,
) -> Result<SchedClassifierLinkId, ProgramError> {
    let mut taken = None;
    for handle in HANDLES {
        let options = NlOptions { priority: 1, handle: handle.into(), classid: None };
        let options = TcAttachOptions::Netlink(options);
        match program.attach_with_options(interface, direction.attach_type(), options) {
            Err(error) if is_taken(&error) => taken = Some(error),
            attached => return attached,
        }
    }
    Err(taken.unwrap_or(ProgramError::NotLoaded))
}

/// Whether there is a filter of this handle already.
fn is_taken(error: &ProgramError) -> bool {
    matches!(error, ProgramError::TcError(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST))
}

/// Whether to attach by tcx, which runs before every legacy filter: where a neighbour does, and where there is nothing
/// that a legacy filter could hang on, since a clsact qdisc of ours would stay behind. Not on kernels before 6.6.
fn is_by_tcx(interface: &str) -> bool {
    let has_neighbour = [TcAttachType::Ingress, TcAttachType::Egress].into_iter().any(|direction| {
        SchedClassifier::query_tcx(interface, direction).is_ok_and(|(_, programs)| !programs.is_empty())
    });
    let has_clsact = || ifindex(interface).is_some_and(|index| neighbours::has_clsact(index).unwrap_or(true));
    has_neighbour || (neighbours::has_tcx() && !has_clsact())
}

fn add_clsact(interface: &str) -> Result<()> {
    match qdisc_add_clsact(interface) {
        Ok(()) | Err(TcError::AlreadyAttached) => Ok(()),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(error).context("failed to add the clsact qdisc"),
    }
}

/// A filter that a plsprobe left behind when it was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its name, one of our programs'.
    pub program: &'static str,
    /// Where it was: `eth0 ingress`.
    pub place: String,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` at `{}`", self.program, self.place)
    }
}

/// Removes the filters that a plsprobe left behind when it was killed, on every interface, by our programs' names;
/// returns those that it removed.
///
/// # Errors
///
/// When the filters cannot be listed or a leftover cannot be removed.
pub(super) fn remove_leftovers() -> Result<Vec<Leftover>> {
    let mut removed = Vec::new();
    for (ifindex, direction, name) in neighbours::legacy_filters()? {
        let direction = Direction::from(direction);
        let ours = Role::ALL.into_iter().flat_map(Role::programs);
        let Some((_, program)) = ours.into_iter().find(|ours| *ours == (direction, name.as_str())) else {
            continue;
        };
        let Some(interface) = interface_name(ifindex) else { continue }; // it has gone
        let leftover = Leftover { program, place: format!("{interface} {direction}") };
        // Of several of one name the first call removes all.
        match qdisc_detach_program(&interface, direction.attach_type(), program) {
            Ok(()) => removed.push(leftover),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("failed to remove {leftover}")),
        }
    }
    Ok(removed)
}

/// No such filter, no clsact to hold one, or no such interface any more.
fn is_absent(error: &TcError) -> bool {
    let code = match error {
        TcError::IoError(error) if error.kind() == io::ErrorKind::NotFound => return true,
        TcError::IoError(error) => error.raw_os_error(),
        TcError::NetlinkError(error) => error.raw_os_error(),
        _ => None,
    };
    means_absent(code)
}

/// Our filter has gone, or what it hung on.
fn is_gone(error: &ProgramError) -> bool {
    matches!(error, ProgramError::NetlinkError(error) if means_absent(error.raw_os_error()))
}

const fn means_absent(code: Option<i32>) -> bool {
    matches!(code, Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}
