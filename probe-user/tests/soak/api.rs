//! An API server of Kubernetes in the lab's node, that is there, refuses, says nothing, or is gone.
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io, thread};

use probe_lab::addresses::{APP_CLUSTER_IP, APP_POD, ILB, NGINX_POD, SERVICE_PORT};
use probe_lab::{Lab, Ns};
use serde_json::{Value, json};

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Lists and watches.
    Well,
    /// Ends what is open; nobody listens.
    Gone,
    /// Ends what is open; status 403 for all.
    Refusing,
    /// Takes requests, and says nothing.
    Silent,
    /// Watches end, since the version that they go on from is too old.
    Forgetful,
}

impl Mood {
    /// Those in which it is of no use.
    pub(crate) const BAD: [Self; 4] = [Self::Gone, Self::Refusing, Self::Silent, Self::Forgetful];
}

/// It; ends when dropped.
pub(crate) struct Api {
    address: SocketAddr,
    kubeconfig: PathBuf,
    state: Arc<Mutex<State>>,
}

struct State {
    mood: Mood,
    /// Grows with each mood: what began before ends.
    generation: u64,
    requests: usize,
}

impl Api {
    /// Starts it, and writes a kubeconfig for it into the lab's folder.
    pub(crate) fn start(lab: &Lab) -> Self {
        let listener = lab.run_in(Ns::Node, || TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let kubeconfig = lab.instance().dir().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
            "clusters": [{ "name": "lab", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "lab", "user": {} }],
        });
        fs::write(&kubeconfig, config.to_string()).unwrap();
        let state = State { mood: Mood::Well, generation: 0, requests: 0 };
        let api = Self { address, kubeconfig, state: Arc::new(Mutex::new(state)) };
        api.listen(listener, 0);
        api
    }

    /// Where its kubeconfig is.
    pub(crate) fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        lock(&self.state).requests
    }

    /// Becomes so.
    pub(crate) fn become_(&self, lab: &Lab, mood: Mood) {
        let generation = {
            let mut state = lock(&self.state);
            (state.mood, state.generation) = (mood, state.generation + 1);
            state.generation
        };
        if mood == Mood::Gone {
            return;
        }
        // The one before may listen for another moment.
        let listener = loop {
            match lab.run_in(Ns::Node, || TcpListener::bind(self.address)).unwrap() {
                Ok(listener) => break listener,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse),
            }
            thread::sleep(Duration::from_millis(20));
        };
        self.listen(listener, generation);
    }

    /// Accepts for one generation.
    fn listen(&self, listener: TcpListener, generation: u64) {
        let state = Arc::clone(&self.state);
        listener.set_nonblocking(true).unwrap();
        thread::spawn(move || {
            while lock(&state).generation == generation {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let state = Arc::clone(&state);
                        // A client that goes is no concern of ours.
                        thread::spawn(move || drop(serve(stream, &state, generation)));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(10)),
                }
            }
        });
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        lock(&self.state).generation += 1;
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one request.
fn serve(mut stream: TcpStream, state: &Mutex<State>, generation: u64) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut reader = BufReader::new(stream.try_clone()?.take(64 << 10));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let mood = {
        let mut state = lock(state);
        state.requests += 1;
        state.mood
    };
    let is_current = || lock(state).generation == generation;
    match mood {
        Mood::Refusing => answer(&mut stream, "403 Forbidden", &json!({ "kind": "Status", "message": "no" })),
        Mood::Silent | Mood::Gone => {
            while is_current() {
                thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }
        Mood::Well | Mood::Forgetful if path.contains("watch=1") => {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
            )?;
            if mood == Mood::Forgetful {
                let status =
                    json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" });
                chunk(&mut stream, &json!({ "type": "ERROR", "object": status }))?;
                return stream.write_all(b"0\r\n\r\n");
            }
            while is_current() {
                let version = json!({ "metadata": { "resourceVersion": "7" } });
                chunk(&mut stream, &json!({ "type": "BOOKMARK", "object": version }))?;
                thread::sleep(Duration::from_millis(500));
            }
            Ok(())
        }
        Mood::Well | Mood::Forgetful => {
            let list = json!({ "metadata": { "resourceVersion": "7" }, "items": objects(path) });
            answer(&mut stream, "200 OK", &list)
        }
    }
}

fn answer(stream: &mut TcpStream, status: &str, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn chunk(stream: &mut TcpStream, event: &Value) -> io::Result<()> {
    let line = format!("{event}\n");
    write!(stream, "{:x}\r\n{line}\r\n", line.len())
}

/// The lab's world, as the API has it.
fn objects(path: &str) -> Value {
    let pods = [APP_POD, NGINX_POD].map(|pod| {
        json!({
            "metadata": { "name": pod.name, "namespace": "default", "labels": { "app": pod.name } },
            "spec": { "nodeName": "lab" },
            "status": { "phase": "Running", "podIP": pod.address.to_string(), "podIPs": [{ "ip": pod.address.to_string() }] },
        })
    });
    let service = json!({
        "metadata": {
            "name": "pls-app", "namespace": "default",
            "annotations": { "service.beta.kubernetes.io/azure-pls-create": "true" },
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": APP_CLUSTER_IP.to_string(), "selector": { "app": "pls-app" },
            "ports": [{ "port": SERVICE_PORT, "targetPort": SERVICE_PORT, "protocol": "TCP" }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": ILB.to_string() }] } },
    });
    match path.split('?').next() {
        Some("/api/v1/pods") => json!(pods),
        Some("/api/v1/services") => json!([service]),
        Some("/api/v1/namespaces") => json!([{ "metadata": { "name": "default" } }]),
        _ => json!([]),
    }
}
