//! Which flows come: those that are kept, those that come, each once, and how many did not.

use std::sync::Arc;

use super::*;
use crate::grpc::testing::{nested, number, text};

fn time(field: u64, ns: u64) -> Vec<u8> {
    nested(field, &[number(1, ns / SECOND), number(2, ns % SECOND)])
}

const FOLLOW: u64 = 3;
const FIRST: u64 = 9;

#[tokio::test]
async fn of_what_is_kept() {
    let hubble = Hubble::start(10).await;
    for number in 1..=12 {
        let mut flow = denied(number);
        flow.translated.dport = if number % 2 == 0 { 8080 } else { 9090 };
        hubble.feed.push(flow);
    }
    let even = || nested(6, &[text(14, "8080")]);
    let at = |number: u64| TIME + number * SECOND + 7;
    for (request, wanted) in [
        (vec![], vec![3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (vec![number(1, 3)], vec![10, 11, 12]),
        (vec![number(1, 3), number(FIRST, 1)], vec![3, 4, 5]),
        (vec![number(1, 3), even()], vec![8, 10, 12]),
        (vec![number(1, 2), number(FIRST, 1), even()], vec![4, 6]),
        (vec![number(1, u64::MAX)], vec![3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (vec![time(7, at(11))], vec![11, 12]),
        (vec![time(7, at(10) + 1)], vec![11, 12]),
        (vec![time(8, at(4))], vec![3, 4]),
        (vec![time(7, at(5)), time(8, at(8)), even()], vec![6, 8]),
        (vec![time(7, at(5)), number(1, 2)], vec![5, 6]),
        (vec![time(7, at(99))], vec![]),
        (vec![nested(7, &[]), nested(10, &[text(1, "time")])], vec![3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    ] {
        assert_eq!(hubble.numbers(&request).await, wanted, "{request:?}");
    }
    let both = hubble.refusal(&[number(FIRST, 1), number(FOLLOW, 1)]).await;
    assert_eq!(both, "`first` and `follow` exclude each other");
    let nanos = hubble.refusal(&[nested(7, &[number(2, SECOND)])]).await;
    assert!(nanos.starts_with("`since` has 1000000000 nanoseconds"), "{nanos}");
}

async fn next_number(call: &mut Call) -> u64 {
    number_of(&Message::read(&call.next().await.unwrap()))
}

/// History and then what comes, while another thread adds to both: each flow that is wanted once, in its order.
#[tokio::test]
async fn each_flow_once() {
    let hubble = Hubble::start(4096).await;
    (1..=100).for_each(|number| hubble.feed.push(denied(number)));
    let feed = Arc::clone(&hubble.feed);
    let pushing = std::thread::spawn(move || {
        for number in 101..=1998 {
            let mut flow = denied(number);
            flow.translated.dport = if number % 3 == 0 { 8080 } else { 9090 };
            feed.push(flow);
            std::thread::yield_now();
        }
    });
    let wanted = nested(6, &[text(14, "8080")]);
    let mut followers = Vec::new();
    for _ in 0..4 {
        let path = hubble.served.path.clone();
        let request = [number(1, u64::MAX), number(FOLLOW, 1), wanted.clone()].concat();
        followers.push(tokio::spawn(async move {
            let mut call = Call::new(&path, "/observer.Observer/GetFlows", &request).await;
            let mut numbers = Vec::new();
            while numbers.last() != Some(&1998) {
                numbers.push(next_number(&mut call).await);
            }
            numbers
        }));
    }
    let all: Vec<u64> = (1..=1998).filter(|number| *number <= 100 || number % 3 == 0).collect();
    for follower in followers {
        assert_eq!(follower.await.unwrap(), all);
    }
    pushing.join().unwrap();
}

#[tokio::test]
async fn from_now_on() {
    let hubble = Hubble::start(10).await;
    (1..=5).for_each(|number| hubble.feed.push(denied(number)));
    // The last two that are kept tell that it follows.
    let mut with_some = hubble.call("/observer.Observer/GetFlows", &[number(1, 2), number(FOLLOW, 1)]).await;
    assert_eq!((next_number(&mut with_some).await, next_number(&mut with_some).await), (4, 5));
    hubble.feed.push(denied(6));
    assert_eq!(next_number(&mut with_some).await, 6);
    // Without a number only those to come.
    let mut without = hubble.call("/observer.Observer/GetFlows", &[number(FOLLOW, 1)]).await;
    let mut pushed = 6;
    let first = loop {
        pushed += 1;
        hubble.feed.push(denied(pushed));
        let waited = tokio::time::timeout(std::time::Duration::from_millis(50), without.next()).await;
        if let Ok(message) = waited {
            break number_of(&Message::read(&message.unwrap()));
        }
    };
    assert!(first > 6, "{first}");
    // To an end that has passed.
    let (messages, end) = hubble.flows(&[number(FOLLOW, 1), time(8, TIME)]).await;
    assert_eq!((messages.len(), end.0.as_str()), (0, "0"));
}

/// Flows that were told, and those that were said to be lost.
fn count(response: &Message) -> (u64, u64) {
    match response.message(3) {
        None => (1, 0),
        Some(lost) => {
            assert_eq!(lost.number(1), 3, "HUBBLE_RING_BUFFER");
            assert!(response.message(1).is_none() && response.text(1000) == "aks-1");
            assert!(response.message(1001).unwrap().number(1) > 0);
            (0, lost.number(2))
        }
    }
}

/// A client that does not read until all that it asked for was overwritten. What it has not got yet is told as lost,
/// and not kept for it.
#[tokio::test]
async fn history_that_went_by() {
    const KEPT: u64 = 1000;
    let hubble = Hubble::start(KEPT as usize).await;
    (1..=KEPT).for_each(|number| hubble.feed.push(denied(number)));
    let last = Arc::downgrade(&hubble.feed.get(KEPT).unwrap());
    let mut call = hubble.call("/observer.Observer/GetFlows", &[]).await;
    let first = Message::read(&call.next().await.unwrap());
    assert_eq!(number_of(&first), 1, "it was asked when all were there");
    (KEPT + 1..=2 * KEPT).for_each(|number| hubble.feed.push(denied(number)));
    assert!(last.upgrade().is_none(), "nobody holds on to it");
    let (rest, end) = call.all().await;
    assert_eq!(end.0, "0");
    let (told, lost) = rest.iter().map(count).fold((1, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert_eq!(told + lost, KEPT);
    assert!(lost > 0 && told < KEPT, "{told} told, {lost} lost");
}

/// A follower that does not read while more flows come than wait for anyone.
#[tokio::test]
async fn what_came_too_fast() {
    const CAME: u64 = 20_000;
    let hubble = Hubble::start(10).await;
    hubble.feed.push(denied(1));
    let mut call = hubble.call("/observer.Observer/GetFlows", &[number(1, 1), number(FOLLOW, 1)]).await;
    assert_eq!(next_number(&mut call).await, 1);
    (2..=CAME).for_each(|number| hubble.feed.push(denied(number)));
    let (mut told, mut lost) = (1, 0);
    while told + lost < CAME {
        let (one, gone) = count(&Message::read(&call.next().await.unwrap()));
        (told, lost) = (told + one, lost + gone);
    }
    assert_eq!(told + lost, CAME);
    assert!(lost > 0, "{told} told");
    hubble.feed.push(denied(CAME + 1));
    assert_eq!(next_number(&mut call).await, CAME + 1, "it goes on");
}
