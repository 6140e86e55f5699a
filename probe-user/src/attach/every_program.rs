//! Every program of the object, loaded by its name; `cargo xtask vm-test` reads the lines that this prints.
use ::object::{File, Object as _, ObjectSection as _, ObjectSymbol as _};
use aya::Btf as KernelTypes;
use aya::programs::{Program, ProgramError};

use super::is_built_in;
use super::loading::{describe_load, load_again};
use super::object::{load, unpack};
use super::tests::{NODE, about, in_runtime, settings};
use crate::sources::btf::VMLINUX;
use crate::sys;

#[test]
fn every_program_loads() {
    if !is_built_in() {
        fixtures::skip!("built without its eBPF object");
        return;
    }
    if !std::path::Path::new(VMLINUX).exists() {
        fixtures::skip!("no kernel BTF");
        return;
    }
    let _ = sys::lift_memlock_limit();
    let mut settings = settings(about(NODE));
    // The verifier skips what a setting turns off: nothing is.
    settings.config.events_map_id = 1;
    settings.filter.sources = vec!["192.0.2.0/24".parse().unwrap()];
    let mut ebpf = match load(&settings) {
        Ok(ebpf) => ebpf,
        Err(error) if !is_root() => {
            fixtures::skip!("no privilege to load programs ({error:#})");
            return;
        }
        Err(error) => panic!("{error:#}"),
    };
    let types = KernelTypes::from_sys_fs().unwrap();
    let mut wrong = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        let outcome = in_runtime(|| load_again(|| load_one(name, program, &types)));
        let allowed = outcome.is_ok() || is_tracing(program) && outcome.as_ref().is_err_and(is_forbidden);
        let said = match outcome {
            Ok(()) => "loaded".to_owned(),
            Err(error) => format!("{:#}", describe_load(error)),
        };
        // On a line of its own: the harness may have begun one.
        println!("\neBPF program `{name}`: {said}");
        if !allowed {
            wrong.push(name.to_owned());
        }
    }
    assert!(wrong.is_empty(), "refused: {}", wrong.join(", "));
}

fn load_one(name: &str, program: &mut Program, types: &KernelTypes) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::KProbe(program) => program.load(),
        Program::FEntry(program) => program.load(&hook_of(name), types),
        Program::FExit(program) => program.load(&hook_of(name), types),
        Program::BtfTracePoint(program) => program.load(&hook_of(name), types),
        _ => panic!("`{name}` is of a kind that this test cannot load; add it"),
    }
}

/// What the program's section says it is for: the function in `fentry/bpf_skb_event_output`.
fn hook_of(name: &str) -> String {
    let object = unpack().unwrap();
    let file = File::parse(object.as_slice()).unwrap();
    let section = file.symbol_by_name(name).and_then(|symbol| symbol.section_index()).unwrap();
    let section = file.section_by_index(section).unwrap().name().unwrap().to_owned();
    section.rsplit_once('/').expect("the section names the hook").1.to_owned()
}

fn is_root() -> bool {
    // SAFETY: takes no argument and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A kernel under lockdown, or without kprobes, refuses these, whatever is in them.
fn is_tracing(program: &Program) -> bool {
    matches!(program, Program::KProbe(_) | Program::FEntry(_) | Program::FExit(_))
}

fn is_forbidden(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == std::io::ErrorKind::PermissionDenied)
}
