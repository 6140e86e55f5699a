//! Runs the system's own tools; an error carries the command, its exit and what it said.
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs `command` to its end and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null());
    let output = command.output().with_context(|| format!("failed to run `{}`", line(command)))?;
    finish(command, &output, None)
}

/// Runs `command` with `input` on its standard input.
pub(crate) fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to run `{}`", line(command)))?;
    let mut stdin = child.stdin.take().context("a piped child has no standard input")?;
    // A child that dies early closes the pipe; its exit status below tells more than the write's error.
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output =
        child.wait_with_output().with_context(|| format!("failed to wait for `{}`", line(command)))?;
    let stdout = finish(command, &output, Some(input))?;
    written.with_context(|| format!("failed to write the input of `{}`", line(command)))?;
    Ok(stdout)
}

fn finish(command: &Command, output: &Output, input: Option<&str>) -> Result<String> {
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let input = input.map(|input| format!("\ninput was:\n{input}")).unwrap_or_default();
        bail!("`{}` ended with {}: {}{input}", line(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
