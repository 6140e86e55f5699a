//! The agent's own rules, as `GET /policy` has them.

use serde_json::Value;

use super::cilium::Scope;
use super::{Effect, Node, Objects, Options, Policy, Reader, Unevaluated};
use crate::intent::label::Label;
use crate::intent::path::Path;
use crate::world::PolicyRef;

/// Reads the agent's rules; their order numbers them. Each is a policy of one rule, named by its labels.
///
/// The agent has parsed the objects already: namespaces are in the selectors, and it refuses nothing any more. A rule that
/// plsprobe cannot read is [`Objects::unread`].
pub fn read_agent_rules(rules: &[Value], options: &Options) -> Objects {
    let mut read = Objects::default();
    for (object, value) in rules.iter().enumerate() {
        let labels = labels(value);
        let policy = PolicyRef::from_labels(labels.iter().map(String::as_str));
        let mut reader = Reader { policy: policy.clone(), options, reasons: Vec::new() };
        let rule = reader.rule(&Node::root(value), &Scope::AsWritten);
        if reader.reasons.is_empty() {
            read.policies.push(Policy {
                object,
                reference: policy,
                labels,
                rules: rule.into_iter().collect(),
            });
        } else {
            let why = format!("plsprobe cannot read it: {}", reader.reasons.join("; "));
            read.unread.push(Unevaluated { policy, path: Path::root(), why, effect: Effect::Either });
        }
    }
    read
}

/// The labels of a rule, sorted.
fn labels(rule: &Value) -> Vec<String> {
    let text =
        |label: &Value, field: &str| label.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = rule.get("labels").and_then(Value::as_array).into_iter().flatten();
    let label = |label: &Value| Label {
        source: text(label, "source"),
        key: text(label, "key"),
        value: text(label, "value"),
    };
    let mut labels: Vec<_> = list.map(|value| label(value).to_string()).collect();
    labels.sort();
    labels
}
