//! How many flows Hubble's API tells one client over a unix socket: all that are kept, and those that come.

#[path = "../src/agent/hubble/tests/denied.rs"]
mod denied;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use probe_user::agent::feed::Feed;
use probe_user::agent::flow::{Flow, Peer, SourceClass, Stop};
use probe_user::agent::hubble::{Options, services};
use probe_user::agent::status::Board;
use probe_user::grpc::client::{Answers, Client};
use probe_user::grpc::server::{Limits, Server};
use probe_user::grpc::unix::Socket;
use probe_user::trace::judge::FlowVerdict;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use denied::denied;

/// As many as the agent keeps.
const KEPT: u32 = 4096;
/// How often all of them are asked for.
const ROUNDS: u32 = 20;
/// How long flows come at one rate.
const SPAN: Duration = Duration::from_secs(5);
/// Flows a second. The budget is the first.
const RATES: [u32; 4] = [10_000, 20_000, 40_000, 80_000];

const GET_FLOWS: &str = "/observer.Observer/GetFlows";

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hubble.sock");
    let feed = Arc::new(Feed::new(KEPT as usize));
    serve(&path, &feed);
    for number in 1..=u64::from(KEPT) {
        feed.push(flow(number));
    }
    let runtime = runtime();
    let client = runtime.block_on(connected(&path));
    let begun = Instant::now();
    let mut bytes = 0;
    for _ in 0..ROUNDS {
        bytes += runtime.block_on(all(&client));
    }
    let took = begun.elapsed().as_secs_f64();
    let flows = f64::from(KEPT * ROUNDS);
    println!("kept: {:.0} flows/s, {:.0} bytes each", flows / took, f64::from(bytes) / flows);
    println!("| coming, flows/s | told, flows/s | lost |\n|---|---|---|");
    for rate in RATES {
        let (told, lost) = follow(&runtime, &client, &feed, rate);
        println!("| {rate} | {told:.0} | {lost} |");
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("an event loop")
}

/// Serves on a thread of its own, as the agent does.
fn serve(path: &Path, feed: &Arc<Feed>) {
    let (path, feed) = (path.to_owned(), Arc::clone(feed));
    std::thread::spawn(move || {
        runtime().block_on(async {
            let peers = watch::channel(Vec::new()).1;
            let options = Options { node: "aks-1".to_owned(), address: None, peers };
            let services = services(options, feed, Arc::new(Board::default()));
            let server = Server::new(services, Limits::AGENT, Arc::new(|line| eprintln!("{line}")));
            let socket = Socket::bind(&path, None).await.expect("a socket");
            server.serve_unix(&socket.listener).await;
        });
    });
}

async fn connected(path: &Path) -> Client {
    loop {
        match Client::connect(path).await {
            Ok(client) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Bytes of all flows that are kept. A flow is field 1 of an answer, as bytes are of a `BytesValue`.
async fn all(client: &Client) -> u32 {
    let mut answers: Answers<Vec<u8>> = client.call(GET_FLOWS, &()).await.expect("an answer");
    let mut bytes = 0;
    for _ in 0..KEPT {
        bytes += answers.next().await.expect("a flow").expect("another flow").len() as u32;
    }
    assert_eq!(answers.next().await.expect("an end"), None);
    bytes
}

/// Flows that one follower was told per second while they came at `rate`, and how many it was not told.
fn follow(runtime: &Runtime, client: &Client, feed: &Arc<Feed>, rate: u32) -> (f64, u32) {
    let count = rate * SPAN.as_secs() as u32;
    let first = feed_end(feed) + 1;
    let last = first + u64::from(count) - 1;
    // `follow`, and the last that is kept as a sign that it does.
    let request = FollowRequest { number: 1, follow: true };
    runtime.block_on(async {
        let mut answers: Answers<Vec<u8>> = client.call(GET_FLOWS, &request).await.expect("an answer");
        answers.next().await.expect("the last that is kept");
        let pushing = push(feed, first, last, rate);
        let begun = Instant::now();
        let mut told = 0;
        // The last flow is never lost: nothing comes after it that could push it out.
        loop {
            let flow = answers.next().await.expect("a flow").expect("another flow");
            told += u32::from(!flow.is_empty());
            if is_numbered(&flow, last) {
                break;
            }
        }
        let took = begun.elapsed().as_secs_f64();
        pushing.join().expect("all were pushed");
        (f64::from(told) / took, count - told)
    })
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct FollowRequest {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bool, tag = "3")]
    follow: bool,
}

/// The number of the last flow that is kept.
fn feed_end(feed: &Feed) -> u64 {
    feed.follow().0.last().map_or(0, |flow| flow.number)
}

/// Whether the flow's UUID ends with the number.
fn is_numbered(flow: &[u8], number: u64) -> bool {
    let end = format!("-{number:012x}");
    flow.windows(end.len()).any(|window| window == end.as_bytes())
}

/// Each millisecond pushes what is due.
fn push(feed: &Arc<Feed>, first: u64, last: u64, rate: u32) -> std::thread::JoinHandle<()> {
    let feed = Arc::clone(feed);
    std::thread::spawn(move || {
        let begun = Instant::now();
        let mut next = first;
        while next <= last {
            let due = begun.elapsed().as_micros() as u64 * u64::from(rate) / 1_000_000;
            while next <= last && next - first < due {
                feed.push(flow(next));
                next += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

/// One as large as they come: dropped by policy, with its pod, its labels and its way.
fn flow(number: u64) -> Flow {
    let denied = denied(number);
    let stop = |place: &str, tuple| Stop { place: place.to_owned(), at_ns: number, tuple };
    let labels = ["app=pls-app", "io.kubernetes.pod.namespace=shop", "io.cilium.k8s.policy.cluster=default"];
    Flow {
        first_ns: number,
        last_ns: number,
        destination: Peer { labels: labels.map(|label| format!("k8s:{label}")).into(), ..denied.destination },
        sentence: "a deny rule of CiliumNetworkPolicy shop/deny-nat drops it".to_owned(),
        policies: denied.policies[..1].to_vec(),
        nearest: None,
        hops: vec![
            stop("eth0 in", denied.tuple),
            stop("eth0 in, translated", denied.translated),
            stop("lxc6e1a to pod", denied.translated),
        ],
        ..denied
    }
}
