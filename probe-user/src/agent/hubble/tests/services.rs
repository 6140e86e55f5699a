//! The methods beside `GetFlows`.

use std::time::Duration;

use super::*;
use crate::grpc::testing::text;

#[tokio::test]
async fn of_the_server_and_its_node() {
    let hubble = Hubble::start(2).await;
    for number in 1..=3 {
        hubble.feed.push(denied(number));
    }
    let mut other = denied(4);
    other.source.pod = Some(PodName { namespace: "web".to_owned(), name: "client".to_owned() });
    hubble.feed.push(other);
    let answer = async |method: &str| {
        let (mut messages, end) = hubble.call(&format!("/observer.Observer/{method}"), &[]).await.all().await;
        assert_eq!((messages.len(), end.0.as_str()), (1, "0"), "{method}");
        messages.pop().unwrap()
    };
    let status = answer("ServerStatus").await;
    assert_eq!((status.number(1), status.number(2), status.number(3)), (2, 2, 12_345));
    assert!(status.number(4) > 0 && status.text(8).starts_with("plsprobe v"), "{status:?}");
    let nodes = answer("GetNodes").await.messages(1);
    let [node] = nodes.as_slice() else { panic!("{nodes:?}") };
    assert_eq!((node.text(1), node.text(2), node.number(4)), ("aks-1".into(), status.text(8), 1));
    assert_eq!((node.number(7), node.number(8), node.number(9)), (2, 2, 12_345));
    let namespaces = answer("GetNamespaces").await.messages(1);
    assert_eq!(namespaces.iter().map(|one| one.text(2)).collect::<Vec<_>>(), ["shop", "web"]);
}

#[tokio::test]
async fn what_is_not_there() {
    let hubble = Hubble::start(2).await;
    for (path, words) in [
        ("/observer.Observer/GetAgentEvents", "ask Cilium's agent"),
        ("/observer.Observer/GetDebugEvents", "ask Cilium's agent"),
        ("/observer.Observer/getflows", "no method `getflows`"),
        ("/peer.Peer/Other", "no method `Other`"),
        ("/relay.Relay/Other", "no method `/relay.Relay/Other`"),
    ] {
        let (messages, (code, said)) = hubble.call(path, &[]).await.all().await;
        assert_eq!((messages.len(), code.as_str()), (0, "12"), "{path}");
        assert!(said.contains(words), "{said}");
    }
}

#[tokio::test]
async fn peers_come_and_go() {
    let hubble = Hubble::start(2).await;
    let peer = |name: &str, address: &str, server_name: Option<&str>| Agent {
        name: name.to_owned(),
        address: address.to_owned(),
        server_name: server_name.map(str::to_owned),
    };
    let here = peer("aks-1", "10.224.0.4:4245", Some("aks-1.plsprobe"));
    hubble.peers.send_replace(vec![here.clone()]);
    let mut notify = hubble.call("/peer.Peer/Notify", &[]).await;
    let mut next = async || Message::read(&notify.next().await.unwrap());
    let first = next().await;
    assert_eq!(
        (first.text(1), first.text(2), first.number(3)),
        ("aks-1".into(), "10.224.0.4:4245".into(), 1)
    );
    assert_eq!(first.message(4).unwrap().text(1), "aks-1.plsprobe");
    hubble.peers.send_replace(vec![here.clone(), peer("aks-2", "10.224.0.5:4245", None)]);
    let second = next().await;
    assert_eq!((second.text(1), second.number(3), second.message(4)), ("aks-2".into(), 1, None));
    hubble.peers.send_replace(vec![peer("aks-2", "10.224.0.6:4245", None)]);
    let (gone, moved) = (next().await, next().await);
    assert_eq!((gone.text(1), gone.number(3)), ("aks-1".into(), 2), "DELETED");
    assert_eq!((moved.text(2), moved.number(3)), ("10.224.0.6:4245".into(), 3), "UPDATED");
    // Nobody knows more, but it stays open: another call is answered in the meantime.
    drop(hubble.peers);
    let waited = tokio::time::timeout(Duration::from_millis(50), notify.next()).await;
    assert!(waited.is_err(), "{waited:?}");
}

#[tokio::test]
async fn whether_the_engine_is_at_work() {
    let hubble = Hubble::start(2).await;
    let check = async |service: &str| {
        let call = hubble.call("/grpc.health.v1.Health/Check", &[text(1, service)]).await;
        let (messages, end) = call.all().await;
        (messages.first().map(|message| message.number(1)), end.0)
    };
    assert_eq!(check("").await, (Some(1), "0".to_owned()), "SERVING");
    assert_eq!(check("observer.Observer").await, (Some(1), "0".to_owned()));
    assert_eq!(check("other").await, (None, "5".to_owned()), "NOT_FOUND");
    let mut watch = hubble.call("/grpc.health.v1.Health/Watch", &[]).await;
    assert_eq!(Message::read(&watch.next().await.unwrap()).number(1), 1);
    let hangs = Some(SystemTime::now() - 2 * crate::agent::status::SILENCE_MAX);
    hubble.board.write(Status { serving_since: hangs, said: hangs, ..Status::default() });
    assert_eq!(Message::read(&watch.next().await.unwrap()).number(1), 2, "NOT_SERVING");
    assert_eq!(check("").await, (Some(2), "0".to_owned()));
    let mut unknown = hubble.call("/grpc.health.v1.Health/Watch", &[text(1, "other")]).await;
    assert_eq!(Message::read(&unknown.next().await.unwrap()).number(1), 3, "SERVICE_UNKNOWN");
    // A Cilium that is gone is no reason to start the agent anew.
    let now = Some(SystemTime::now());
    let trouble = Some("Cilium is not there".to_owned());
    hubble.board.write(Status { serving_since: now, said: now, trouble, ..Status::default() });
    assert_eq!(check("").await.0, Some(1));
    hubble.board.write(Status::default());
    assert_eq!(check("").await.0, Some(2), "it has not begun");
}
