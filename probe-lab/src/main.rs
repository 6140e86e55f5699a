//! `plsprobe-lab`: brings the test world up and down, and sends traffic through it.
use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(err) => {
            eprintln!("plsprobe-lab: {err:#}");
            ExitCode::from(2)
        }
    }
}
