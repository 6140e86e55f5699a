//! The stand-in for the agent, over its sockets.
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use probe_lab::addresses::{APP_POD, NAT_IPS};
use probe_lab::agent::rest::Source;
use probe_lab::scenario::Client;
use probe_lab::{ClientSaw, Lab, LabOptions};
use probe_model::cilium::EndpointId;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::events::{Notification, Sample};
use probe_model::cilium::gob::{Decoder, Payload};
use serde_json::Value;

fn up(test: &str, scenario: &str) -> Option<Lab> {
    if let Some(why) = probe_lab::unavailable() {
        fixtures::skip!("{why}");
        return None;
    }
    let instance = format!("t{}-{test}", std::process::id());
    let options = LabOptions { instance, scenario: scenario.to_owned(), ..LabOptions::default() };
    Some(Lab::up_without_datapath(&options).expect("the lab comes up"))
}

/// The status line and the body of one request.
fn get(socket: &Path, target: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: cilium\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[test]
fn rest_answers_are_the_scenarios() {
    let Some(lab) = up("rest", "seed-deny") else { return };
    let socket = lab.run_dir().join("cilium.sock");
    let (status, body) = get(&socket, "/v1/endpoint/2686");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let endpoint: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(endpoint["status"]["policy"]["realized"]["policy-enabled"], "both");
    assert_eq!(get(&socket, "/v1/endpoint/7"), ("HTTP/1.1 404 Not Found".to_owned(), String::new()));
    assert_eq!(get(&socket, "/v2/endpoint").0, "HTTP/1.1 404 Not Found");
}

#[test]
fn recorded_answers_are_served_as_they_are() {
    let Some(mut lab) = up("recorded", "none") else { return };
    let rest = fixtures::recording("cilium-1.14").join("deny-all/rest");
    lab.start_agent_with(Source::Recorded(rest.clone())).unwrap();
    let socket = lab.run_dir().join("cilium.sock");
    let (_, body) = get(&socket, "/v1/endpoint/2686");
    assert_eq!(body, std::fs::read_to_string(rest.join("endpoint-2686.json")).unwrap());
    assert_eq!(get(&socket, "/v1/policy/selectors").0, "HTTP/1.1 200 OK");
    assert_eq!(get(&socket, "/v1/../policy").0, "HTTP/1.1 404 Not Found");
}

#[test]
fn the_monitor_socket_ends_with_the_agent() {
    let Some(mut lab) = up("monitor", "none") else { return };
    let socket = lab.run_dir().join("monitor1_2.sock");
    let mut listener = UnixStream::connect(&socket).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let event = Payload::Sample { cpu: 0, data: vec![4, 1, 2, 3] };
    let publisher = lab.agent().unwrap().publisher().clone();
    // Whoever has just connected may not be known yet: until then there is nobody to send to.
    while *publisher.listeners().borrow() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    publisher.publish(&event);
    let mut buffer = [0; 256];
    let n = listener.read(&mut buffer).unwrap();
    let mut decoder = Decoder::new();
    decoder.feed(&buffer[..n]);
    assert_eq!(decoder.next().unwrap(), Some(event));
    lab.stop_agent();
    assert_eq!(listener.read(&mut buffer).unwrap(), 0);
    assert!(UnixStream::connect(&socket).is_err());
    lab.start_agent().unwrap();
    UnixStream::connect(&socket).unwrap();
}

/// What the stand-in for the datapath notifies comes out of the monitor socket.
#[test]
fn the_datapaths_events_reach_a_listener() {
    if let Some(why) = probe_lab::standin::unavailable() {
        return fixtures::skip!("{why}");
    }
    let instance = format!("t{}-events", std::process::id());
    let options = LabOptions { instance, scenario: "allow-nat-ip".to_owned(), ..LabOptions::default() };
    let lab = Lab::up(&options).unwrap();
    let mut listener = UnixStream::connect(lab.run_dir().join("monitor1_2.sock")).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // As on a node, the perf buffers are opened for the first listener: what passes before is nobody's.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(lab.probe(&Client::ConsumerSecondNatIp.probe()).unwrap(), ClientSaw::Timeout);

    let mut decoder = Decoder::new();
    let mut buffer = [0; 4096];
    let mut seen = (false, false);
    while seen != (true, true) {
        let n = listener.read(&mut buffer).expect("both notifications come in time");
        assert_ne!(n, 0, "the stream ended");
        decoder.feed(&buffer[..n]);
        while let Some(payload) = decoder.next().unwrap() {
            let Payload::Sample { data, .. } = payload else { panic!("{payload:?}") };
            let sample = Sample::decode(&data).unwrap();
            let from_nat_ip = sample.packet.get(26..30) == Some(&NAT_IPS[1].octets()[..]);
            let policy = DropReason(133);
            match sample.notification {
                Notification::PolicyVerdict(verdict) if from_nat_ip => {
                    seen.0 |= verdict.drop_reason() == Some(policy)
                        && verdict.header.source == EndpointId(APP_POD.endpoint_id);
                }
                Notification::Drop(drop) if from_nat_ip => seen.1 |= drop.reason == policy,
                _ => {}
            }
        }
    }
}
