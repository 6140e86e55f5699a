//! A flow's cause, which Hubble has no field for: in `flow.extensions`, as JSON in a `google.protobuf.StringValue`.
//!
//! That type every program that knows `flow.proto` knows too. Of a message of our own `hubble observe -o json` would not
//! print the flow at all: protobuf's JSON refuses an `Any` whose type it does not have.

use prost::Message as _;
use serde_json::{Value, json};

use super::proto::{Any, StringValue};
use crate::agent::flow::{Flow, Stop};

const TYPE_URL: &str = "type.googleapis.com/google.protobuf.StringValue";
/// What the JSON says it is.
const SCHEMA: &str = "plsprobe.hubble.cause/1";

/// The extension.
pub(super) fn extension(flow: &Flow) -> Any {
    let value = StringValue { value: value(flow).to_string() };
    Any { type_url: TYPE_URL.to_owned(), value: value.encode_to_vec() }
}

fn value(flow: &Flow) -> Value {
    let policies = flow
        .policies
        .iter()
        .map(|policy| json!({ "kind": policy.kind, "namespace": policy.namespace, "name": policy.name }));
    json!({
        "schema": SCHEMA,
        "number": flow.number,
        "code": flow.cause.text(),
        "sentence": flow.sentence,
        "policies": policies.collect::<Vec<_>>(),
        "nearest": flow.nearest,
        "source_class": flow.class.word(),
        "link_id": flow.link_id,
        "disagreements": flow.disagreements,
        "came_as": flow.tuple.to_string(),
        "became": flow.translated.to_string(),
        "refused": flow.is_refused,
        "retransmissions": flow.retransmissions,
        "last_ns": flow.last_ns,
        "answered_ns": flow.answered_ns,
        "hops": flow.hops.iter().map(stop).collect::<Vec<_>>(),
        "replies": flow.replies.iter().map(stop).collect::<Vec<_>>(),
    })
}

fn stop(stop: &Stop) -> Value {
    json!({ "place": stop.place, "at_ns": stop.at_ns, "packet": stop.tuple.to_string() })
}
