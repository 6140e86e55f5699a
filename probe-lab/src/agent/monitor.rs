//! The stand-in for the agent's monitor socket: whoever connects is sent every event from then on.
use std::fs;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use probe_model::cilium::gob::Payload;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::gob::{Encoder, FIRST_TYPE_ID};

/// Payloads queued per listener before further ones are dropped, as the agent does (`monitor-queue-size`).
const QUEUE: usize = 2048;

/// The socket, while it is open.
#[derive(Debug)]
pub struct Monitor {
    path: PathBuf,
    publisher: Publisher,
    accepting: AbortHandle,
}

/// Sends events to every listener of a [`Monitor`].
#[derive(Debug, Clone)]
pub struct Publisher {
    /// `None` once the socket is closed: a connection accepted at that moment finds no place and ends too.
    listeners: Arc<Mutex<Option<Vec<mpsc::Sender<Payload>>>>>,
    /// How many listeners there are: the agent reads its perf buffer only while there is one.
    count: Arc<watch::Sender<usize>>,
}

impl Monitor {
    /// Opens the socket at `path` and serves it on `runtime`.
    ///
    /// # Errors
    ///
    /// The socket cannot be bound.
    pub fn start(runtime: &Handle, path: &Path) -> Result<Self> {
        let listener = bind(path)?;
        let publisher = Publisher::new();
        let accepting = runtime.spawn(accept(listener, publisher.clone())).abort_handle();
        Ok(Self { path: path.to_owned(), publisher, accepting })
    }

    /// What sends to its listeners.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }
}

impl Drop for Monitor {
    /// As when the agent ends: listeners see the end of the stream, the socket's file goes.
    fn drop(&mut self) {
        self.accepting.abort();
        self.publisher.close();
        if let Err(err) = fs::remove_file(&self.path) {
            eprintln!("plsprobe-lab: failed to remove `{}`: {err}", self.path.display());
        }
    }
}

impl Publisher {
    fn new() -> Self {
        let listeners = Arc::new(Mutex::new(Some(Vec::new())));
        Self { listeners, count: Arc::new(watch::Sender::new(0)) }
    }

    /// Queues `payload` for every listener; one whose queue is full misses it.
    pub fn publish(&self, payload: &Payload) {
        let is_open = |listener: &mpsc::Sender<Payload>| {
            !matches!(listener.try_send(payload.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        };
        self.change(|listeners| listeners.retain(is_open));
    }

    /// Follows the number of listeners.
    pub fn listeners(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    fn add(&self, listener: mpsc::Sender<Payload>) {
        self.change(|listeners| listeners.push(listener));
    }

    fn remove_closed(&self) {
        self.change(|listeners| listeners.retain(|listener| !listener.is_closed()));
    }

    /// Ends every listener's stream, and that of any that comes yet.
    fn close(&self) {
        *self.locked() = None;
        self.count.send_replace(0);
    }

    /// Changes the list and tells its length, unless the socket is closed.
    fn change(&self, change: impl FnOnce(&mut Vec<mpsc::Sender<Payload>>)) {
        if let Some(listeners) = self.locked().as_mut() {
            change(listeners);
            self.count.send_replace(listeners.len());
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Option<Vec<mpsc::Sender<Payload>>>> {
        // The list is whole after every statement above, whoever panicked.
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Binds a socket and makes it ready for the runtime.
pub(crate) fn bind(path: &Path) -> Result<StdUnixListener> {
    let context = || format!("failed to listen on `{}`", path.display());
    let listener = StdUnixListener::bind(path).with_context(context)?;
    listener.set_nonblocking(true).with_context(context)?;
    Ok(listener)
}

async fn accept(listener: StdUnixListener, publisher: Publisher) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(err) => return eprintln!("plsprobe-lab: the monitor socket failed: {err}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (sender, queue) = mpsc::channel(QUEUE);
                publisher.add(sender);
                tokio::spawn(serve(stream, queue, publisher.clone()));
            }
            Err(err) => return eprintln!("plsprobe-lab: the monitor socket failed: {err}"),
        }
    }
}

async fn serve(mut stream: UnixStream, mut queue: mpsc::Receiver<Payload>, publisher: Publisher) {
    let mut encoder = Encoder::new(FIRST_TYPE_ID);
    let mut nothing = [0; 16];
    loop {
        tokio::select! {
            payload = queue.recv() => {
                let Some(payload) = payload else { break };
                if stream.write_all(&encoder.encode(&payload)).await.is_err() {
                    break;
                }
            }
            // A listener never sends: whatever is read is its end.
            _ = stream.read(&mut nothing) => break,
        }
    }
    drop(queue);
    publisher.remove_closed();
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use probe_model::cilium::gob::Decoder;

    use super::*;

    fn sample(number: u8) -> Payload {
        Payload::Sample { cpu: 1, data: vec![5, number] }
    }

    struct Socket {
        runtime: tokio::runtime::Runtime,
        path: PathBuf,
        _dir: tempdir::Dir,
    }

    /// A folder of this test's own.
    mod tempdir {
        use std::path::PathBuf;

        pub(super) struct Dir(pub(super) PathBuf);

        impl Dir {
            pub(super) fn new(name: &str) -> Self {
                let dir = std::env::temp_dir().join(format!("plsprobe-lab-{}-{name}", std::process::id()));
                std::fs::create_dir_all(&dir).unwrap();
                Self(dir)
            }
        }

        impl Drop for Dir {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    impl Socket {
        fn new(name: &str) -> Self {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let dir = tempdir::Dir::new(name);
            Self { runtime: runtime.unwrap(), path: dir.0.join("monitor1_2.sock"), _dir: dir }
        }

        fn start(&self) -> Monitor {
            Monitor::start(self.runtime.handle(), &self.path).unwrap()
        }

        /// Connects and waits until the monitor knows of `count` listeners.
        fn connect(&self, monitor: &Monitor, count: usize) -> UnixStream {
            let stream = UnixStream::connect(&self.path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            self.wait(monitor, count);
            stream
        }

        fn wait(&self, monitor: &Monitor, count: usize) {
            let mut listeners = monitor.publisher().listeners();
            let reached = listeners.wait_for(|now| *now == count);
            self.runtime
                .block_on(async { tokio::time::timeout(Duration::from_secs(5), reached).await })
                .expect("in time")
                .expect("the monitor lives");
        }
    }

    fn read(stream: &mut UnixStream, count: usize) -> Vec<Payload> {
        let mut decoder = Decoder::new();
        let mut payloads = Vec::new();
        let mut buffer = [0; 512];
        while payloads.len() < count {
            let n = stream.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "the stream ended early");
            decoder.feed(&buffer[..n]);
            while let Some(payload) = decoder.next().unwrap() {
                payloads.push(payload);
            }
        }
        payloads
    }

    #[test]
    fn every_listener_is_sent_every_event_since_it_came() {
        let socket = Socket::new("listeners");
        let monitor = socket.start();
        monitor.publisher().publish(&sample(0));
        let mut first = socket.connect(&monitor, 1);
        monitor.publisher().publish(&sample(1));
        let mut second = socket.connect(&monitor, 2);
        monitor.publisher().publish(&sample(2));
        monitor.publisher().publish(&Payload::Lost { cpu: 0, count: 7 });
        let lost = Payload::Lost { cpu: 0, count: 7 };
        assert_eq!(read(&mut first, 3), [sample(1), sample(2), lost.clone()]);
        assert_eq!(read(&mut second, 2), [sample(2), lost]);
        drop(first);
        socket.wait(&monitor, 1);
    }

    #[test]
    fn closing_ends_the_stream_and_opening_again_works() {
        let socket = Socket::new("closing");
        let monitor = socket.start();
        let mut listener = socket.connect(&monitor, 1);
        monitor.publisher().publish(&sample(1));
        assert_eq!(read(&mut listener, 1), [sample(1)]);
        drop(monitor);
        assert_eq!(listener.read(&mut [0; 1]).unwrap(), 0);
        assert!(!socket.path.exists());
        let monitor = socket.start();
        let mut listener = socket.connect(&monitor, 1);
        monitor.publisher().publish(&sample(2));
        assert_eq!(read(&mut listener, 1), [sample(2)]);
    }

    /// Aborting a task does not end it at once: it may be accepting just then.
    #[test]
    fn a_connection_accepted_while_closing_ends_too() {
        let publisher = Publisher::new();
        publisher.close();
        let (sender, mut queue) = mpsc::channel(1);
        publisher.add(sender);
        assert_eq!(queue.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        assert_eq!(*publisher.listeners().borrow(), 0);
    }

    #[test]
    fn a_slow_listener_misses_events_and_blocks_nobody() {
        let socket = Socket::new("slow");
        let monitor = socket.start();
        let _slow = socket.connect(&monitor, 1);
        let big = Payload::Sample { cpu: 0, data: vec![4; 4096] };
        // More than the socket's buffer and the queue hold together.
        for _ in 0..QUEUE * 2 {
            monitor.publisher().publish(&big);
        }
        let mut quick = socket.connect(&monitor, 2);
        monitor.publisher().publish(&sample(9));
        assert_eq!(read(&mut quick, 1), [sample(9)]);
    }
}
