//! A policy object as YAML, for `kubectl apply -f -`.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// What the API server adds to an object, and refuses or ignores when it is applied.
const SERVERS_OWN: [&str; 7] = [
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "managedFields",
    "selfLink",
    "ownerReferences",
];
/// kubectl's own note of what it applied before.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The object without what the API server added, as YAML.
pub fn manifest(object: &Value) -> String {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !SERVERS_OWN.contains(&name.as_str()));
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
        metadata.retain(|_, value| !value.as_object().is_some_and(Map::is_empty));
    }
    to_yaml(&object)
}

/// Any value of JSON as YAML in block style, keys in the order that the value has them.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => write_fields(&mut out, fields, 0),
        Value::Array(elements) if !elements.is_empty() => write_elements(&mut out, elements, 0),
        scalar => {
            out.push_str(&inline(scalar));
            out.push('\n');
        }
    }
    out
}

fn write_fields(out: &mut String, fields: &Map<String, Value>, indent: usize) {
    for (number, (name, value)) in fields.iter().enumerate() {
        if number > 0 {
            push_indent(out, indent);
        }
        out.push_str(&text(name));
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                push_indent(out, indent + 1);
                write_fields(out, inner, indent + 1);
            }
            // A list may stand as far left as its name; kubectl writes it so.
            Value::Array(elements) if !elements.is_empty() => {
                out.push('\n');
                push_indent(out, indent);
                write_elements(out, elements, indent);
            }
            scalar => {
                out.push(' ');
                out.push_str(&inline(scalar));
                out.push('\n');
            }
        }
    }
}

fn write_elements(out: &mut String, elements: &[Value], indent: usize) {
    for (number, value) in elements.iter().enumerate() {
        if number > 0 {
            push_indent(out, indent);
        }
        out.push_str("- ");
        match value {
            Value::Object(inner) if !inner.is_empty() => write_fields(out, inner, indent + 1),
            Value::Array(inner) if !inner.is_empty() => write_elements(out, inner, indent + 1),
            scalar => {
                out.push_str(&inline(scalar));
                out.push('\n');
            }
        }
    }
}

fn push_indent(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n("  ", indent));
}

/// A value without lines of its own.
fn inline(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        other => other.to_string(), // null, numbers, booleans, `{}` and `[]` are the same in YAML
    }
}

/// A string, quoted unless it can be nothing else.
fn text(string: &str) -> String {
    if is_plain(string) { string.to_owned() } else { quoted(string) }
}

/// Whether a string without quotes is read as that string: letters first, nothing that means something to YAML.
fn is_plain(string: &str) -> bool {
    const OTHERWISE: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let begins = string.starts_with(|first: char| first.is_ascii_alphabetic());
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
    begins && string.bytes().all(harmless) && !OTHERWISE.contains(&string.to_ascii_lowercase().as_str())
}

/// In double quotes, with the escapes that JSON and YAML share.
fn quoted(string: &str) -> String {
    let mut out = String::from('"');
    for character in string.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // Control characters, and line ends that YAML knows and JSON does not.
            character if character.is_control() || "\u{2028}\u{2029}\u{feff}".contains(character) => {
                let _infallible = write!(out, "\\u{:04x}", u32::from(character));
            }
            character => out.push(character),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_without_what_the_server_added() {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {
                "name": "web", "namespace": "default", "uid": "1", "resourceVersion": "7",
                "annotations": {LAST_APPLIED: "{}"},
            },
            "spec": {
                "podSelector": {"matchLabels": {"app": "web", "version": "1.0"}},
                "ingress": [
                    {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.1/32"]}}, {"podSelector": {}}],
                     "ports": [{"port": 80, "protocol": "TCP"}]},
                    {},
                ],
                "policyTypes": ["Ingress"],
            },
            "status": {},
        });
        expect![[r#"
            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata:
              name: web
              namespace: default
            spec:
              ingress:
              - from:
                - ipBlock:
                    cidr: "10.0.0.0/8"
                    except:
                    - "10.0.0.1/32"
                - podSelector: {}
                ports:
                - port: 80
                  protocol: TCP
              - {}
              podSelector:
                matchLabels:
                  app: web
                  version: "1.0"
              policyTypes:
              - Ingress
        "#]]
        .assert_eq(&manifest(&object));
    }

    #[test]
    fn strings_that_could_be_something_else_are_quoted() {
        let odd = json!([
            "yes",
            "No",
            "null",
            "1e3",
            "0x10",
            "-",
            "a: b",
            "#a",
            "*",
            "",
            " a",
            "a\"b\\",
            "é\n\u{85}",
            "k8s:app",
            "a-b.c/d"
        ]);
        expect![[r##"
            - "yes"
            - "No"
            - "null"
            - "1e3"
            - "0x10"
            - "-"
            - "a: b"
            - "#a"
            - "*"
            - ""
            - " a"
            - "a\"b\\"
            - "é\n\u0085"
            - "k8s:app"
            - a-b.c/d
        "##]]
        .assert_eq(&to_yaml(&odd));
    }

    #[test]
    fn lists_in_lists_and_nothing() {
        assert_eq!(to_yaml(&json!([[1, [2]], {"a": [[]]}])), "- - 1\n  - - 2\n- a:\n  - []\n");
        assert_eq!(to_yaml(&json!({})), "{}\n");
    }
}
