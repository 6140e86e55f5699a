//! An end for whoever waits: for an answer, or for time to pass.

use std::{
    io,
    net::{Shutdown, TcpStream},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::net::sockopt;

/// How long a connection may be silent before the other side is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(30);
/// How long apart it is asked, and how often without an answer.
const PROBE: (Duration, u32) = (Duration::from_secs(10), 3);

/// Ends what one thread waits for, from another.
#[derive(Debug, Default)]
pub struct Stopper {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_stopped: bool,
    /// The last connection that was made; it may have ended.
    connection: Option<TcpStream>,
}

impl Stopper {
    /// Ends the connection and the pause of now, and every later one at once.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.is_stopped = true;
        if let Some(connection) = state.connection.take() {
            // One that has ended already cannot be shut down.
            drop(connection.shutdown(Shutdown::Both));
        }
        self.changed.notify_all();
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.lock().is_stopped
    }

    /// Waits for `time`, or until it is stopped: whether it was.
    pub fn pause(&self, time: Duration) -> bool {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, time, |state| !state.is_stopped);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_stopped
    }

    /// Ends this connection when it is stopped, and notices sooner than a deadline may when its other side is gone.
    pub(super) fn hold(&self, connection: &TcpStream) -> io::Result<()> {
        sockopt::set_socket_keepalive(connection, true)?;
        sockopt::set_tcp_keepidle(connection, SILENCE)?;
        sockopt::set_tcp_keepintvl(connection, PROBE.0)?;
        sockopt::set_tcp_keepcnt(connection, PROBE.1)?;
        let mut state = self.lock();
        if state.is_stopped {
            return Err(io::Error::other("it was stopped"));
        }
        state.connection = Some(connection.try_clone()?);
        Ok(())
    }

    /// Lets the connection go, which has ended.
    pub fn release(&self) {
        self.lock().connection = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
