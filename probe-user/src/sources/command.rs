//! Programs of this machine that are asked for something: they may hang, and print without end.

use std::{
    io::{self, Read},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// How a program ended, and what it printed until then.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: io::Result<String>,
    /// Empty, unless the command has a pipe for it.
    pub(super) stderr: io::Result<String>,
}

/// Runs a program with nothing to read. One that takes longer than `patience` is killed, and `None` is returned.
///
/// # Errors
///
/// When it cannot be run. What it printed is an error of its own where it is no text, or more than `output_max` bytes.
pub(super) fn run(command: &mut Command, patience: Duration, output_max: u64) -> io::Result<Option<Ended>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + patience;
    let stdout = read_in_background(child.stdout.take(), output_max);
    let stderr = read_in_background(child.stderr.take(), output_max);
    let left = || deadline.saturating_duration_since(Instant::now());
    let (Ok(stdout), Ok(stderr)) = (stdout.recv_timeout(left()), stderr.recv_timeout(left())) else {
        // It may have ended meanwhile, and then cannot be killed: the wait tells.
        drop(child.kill());
        child.wait()?;
        return Ok(None);
    };
    Ok(Some(Ended { status: child.wait()?, stdout, stderr }))
}

/// Reads a child's pipe, if there is one, to its end or to the most that is accepted.
fn read_in_background<R: Read + Send + 'static>(
    pipe: Option<R>,
    output_max: u64,
) -> mpsc::Receiver<io::Result<String>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let text = pipe.map_or_else(|| Ok(String::new()), |pipe| read(pipe, output_max));
        // Nobody listens after the time-out.
        drop(sender.send(text));
    });
    receiver
}

fn read(pipe: impl Read, output_max: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = pipe.take(output_max + 1).read_to_string(&mut text)?;
    if read as u64 > output_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_it_prints_and_how_it_ends() {
        let ended = run(sh("echo out; echo err >&2; cat; exit 3").stderr(Stdio::piped()), LONG, 4);
        let Ended { status, stdout, stderr } = ended.unwrap().unwrap();
        assert_eq!(
            (status.code(), stdout.unwrap(), stderr.unwrap()),
            (Some(3), "out\n".into(), "err\n".into())
        );
        assert_eq!(run(&mut sh("exit 0"), LONG, 4).unwrap().unwrap().stderr.unwrap(), "");
        assert!(run(&mut Command::new("/nowhere/program"), LONG, 4).is_err());
    }

    #[test]
    fn what_is_no_text_or_too_much() {
        let kind = |script: &str| {
            let ended = run(&mut sh(script), LONG, 4).unwrap().unwrap();
            ended.stdout.map_err(|error| error.kind())
        };
        assert_eq!(kind("printf 1234"), Ok("1234".to_owned()));
        assert_eq!(kind("printf 12345"), Err(io::ErrorKind::FileTooLarge));
        assert_eq!(kind("yes"), Err(io::ErrorKind::FileTooLarge), "it need not end by itself");
        assert_eq!(kind("printf '\\377'"), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let began = Instant::now();
        let ended = run(&mut sh("exec sleep 600"), Duration::from_millis(200), 4).unwrap();
        assert!(ended.is_none() && began.elapsed() < Duration::from_mins(5));
    }
}
