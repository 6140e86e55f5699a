//! Set-up, demo, tests.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    let status = std::process::Command::new("cargo").arg("test").status()?;
    anyhow::ensure!(status.success(), "`cargo test` failed: {status}");
    Ok(())
}
