//! Everything around the code: set-up, tests, the demo, the virtual machine, the binary to ship.
//!
//! One file per subcommand. Nothing here is shipped, and nothing here knows what plsprobe does.
#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod demo;
mod dist;
mod fuzz;
mod lab;
mod project;
mod setup;
mod sh;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, tests, demo, virtual machine, binary to ship")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring what the build and the tests need: packages, bpf-linker, the standard library's source.
    Setup(setup::Args),
    /// Run every check this project has; `.ci/run` calls this.
    Test(test::Args),
    /// Show the main job in the lab, from nothing.
    Demo(demo::Args),
    /// Build `plsprobe-lab` and run it with these arguments.
    Lab(lab::Args),
    /// Feed the decoders mutated recordings until they break, or the time is over.
    Fuzz(fuzz::Args),
    /// Boot Debian's kernels in QEMU, run the kernel tests in each, and compare its answers with this machine's.
    VmTest(vm::Args),
    /// Run what a release needs: every test, none of them skipped for want of QEMU, then `dist`.
    Ci,
    /// Measure what plsprobe costs, side by side with the plain way.
    Bench(bench::Args),
    /// Build the static binary that is shipped, and check that it runs.
    Dist,
    /// Check the rules of the house that no compiler checks.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::VmTest(args) => vm::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Ci => test::run(&test::Args::for_release()).and_then(|()| dist::run()),
        Command::Dist => dist::run(),
        Command::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            sh::say(&format!("{err:#}"));
            ExitCode::FAILURE
        }
    }
}
