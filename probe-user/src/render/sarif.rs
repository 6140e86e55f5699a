//! What `plsprobe lint` found, as SARIF 2.1.0 (OASIS): one run, a rule a code, a result a finding.
//!
//! An object that was read from a file has its place there; one of the cluster's has its kind and name as its place, as
//! there is no file. What could not be judged is a notification of the run, so that no finding is not taken for all well.

use std::io::{self, Write};

use probe_model::explain::{Code, Evidence, Finding, Remedy, Subject};
use probe_model::lint::Lint;
use serde_json::{Value, json};

use super::lint::finding_value;
use crate::causes::{self, Page};

/// Where the format's schema is.
const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// Writes one SARIF log.
///
/// # Errors
///
/// What `out` says, or if the catalogue cannot be unpacked.
pub fn sarif(lint: &Lint, out: &mut impl Write) -> io::Result<()> {
    let pages = causes::pages().map_err(io::Error::other)?;
    writeln!(out, "{}", log(lint, &pages))
}

fn log(lint: &Lint, pages: &[Page]) -> Value {
    let mut codes: Vec<Code> = lint.findings.iter().map(|found| found.code).collect();
    codes.sort();
    codes.dedup();
    let rules: Vec<_> = codes.iter().map(|code| rule(*code, pages)).collect();
    let results: Vec<_> = lint.findings.iter().map(|found| result(found, &codes)).collect();
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "plsprobe", "semanticVersion": version, "rules": rules } },
            "invocations": [{ "executionSuccessful": true, "toolExecutionNotifications": notifications(lint) }],
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

/// What could not be judged, and where sources contradict each other.
fn notifications(lint: &Lint) -> Vec<Value> {
    let unjudged = lint.unjudged.iter().map(|one| format!("not judged: {}: {}", one.what, one.why));
    let disagreements = lint.disagreements.iter().map(|one| format!("sources disagree: {one}"));
    unjudged
        .chain(disagreements)
        .map(|text| json!({ "level": "warning", "message": { "text": text } }))
        .collect()
}

/// A code, with its page as help.
fn rule(code: Code, pages: &[Page]) -> Value {
    let mut rule = json!({
        "id": code.text(),
        "name": format!("{code:?}"),
        "shortDescription": { "text": format!("{}.", code.title()) },
        "defaultConfiguration": { "level": code.severity().text() },
        "properties": { "tags": [code.area().text()] },
    });
    if let Some(page) = pages.iter().find(|page| page.code == code.page()) {
        let sections =
            page.sections.iter().map(|section| format!("## {}\n\n{}\n", section.heading, section.text));
        let help = sections.collect::<Vec<_>>().join("\n");
        rule["help"] = json!({ "text": help, "markdown": help });
    }
    rule
}

fn result(found: &Finding, codes: &[Code]) -> Value {
    json!({
        "ruleId": found.code.text(),
        "ruleIndex": codes.iter().position(|code| *code == found.code),
        "level": found.severity.text(),
        "message": { "text": message(found) },
        "locations": [location(&found.subject)],
        "partialFingerprints": { "codeAndObject/v1": format!("{}: {}", found.code, found.subject) },
        "properties": finding_value(found),
    })
}

/// The sentence, what proves it and what to do, as plain text.
fn message(found: &Finding) -> String {
    let proof = |one: &Evidence| format!("Proof: {} ({}).", one.what, one.source.text());
    let assumes = |code: &Code| format!("Assumes: {} ({code}).", code.title());
    let remedy = |remedy: &Remedy| match remedy {
        Remedy::Text(text) => format!("Remedy: {text}"),
        Remedy::Command(command) => format!("Run: {command}"),
        Remedy::Yaml(yaml) => format!("Apply:\n{yaml}"),
    };
    let mut lines = vec![format!("{}.", found.sentence)];
    lines.extend(found.evidence.iter().map(proof));
    lines.extend(found.remedy.iter().map(remedy));
    lines.extend(found.assumptions.iter().map(assumes));
    lines.join("\n")
}

/// Where the object is written, or what it is called.
fn location(subject: &Subject) -> Value {
    let named = |namespace: &str| format!("{}/{namespace}{}", subject.kind.text(), subject.name);
    let name = match &subject.namespace {
        Some(namespace) => named(&format!("{namespace}/")),
        None => named(""),
    };
    let physical = match &subject.written {
        Some(at) => json!({
            "artifactLocation": { "uri": uri(&at.path) },
            "region": { "startLine": at.line, "startColumn": at.column },
        }),
        None => json!({ "artifactLocation": {
            "uri": uri(&name), "description": { "text": "an object of the cluster, not a file" },
        } }),
    };
    let logical = json!({ "name": subject.name, "fullyQualifiedName": name, "kind": "resource" });
    json!({ "physicalLocation": physical, "logicalLocations": [logical] })
}

/// A path as a URI reference (RFC 3986): `file://` for an absolute one.
fn uri(path: &str) -> String {
    let scheme = if path.starts_with('/') { "file://" } else { "" };
    let mut uri = scheme.to_owned();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(byte));
            }
            _ => uri.extend(format!("%{byte:02X}").chars()),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use probe_model::explain::{FilePosition, Source, SubjectKind};
    use probe_model::lint::Unjudged;

    use super::*;

    fn sample() -> Lint {
        let policy = |written: Option<FilePosition>| Subject {
            kind: SubjectKind::NetworkPolicy,
            namespace: Some("shop".to_owned()),
            name: "allow-pls".to_owned(),
            written,
        };
        let node =
            Subject { kind: SubjectKind::Node, namespace: None, name: "this node".to_owned(), written: None };
        let at = FilePosition { path: "policies/allow pls.yaml".to_owned(), line: 12, column: 5 };
        let port = Finding::new(
            Code::PortNotTargetPort,
            policy(Some(at)),
            "the rule names port 80, the pod listens on 8080",
        )
        .because(Source::Kubernetes, "service shop/pls-app has targetPort 8080")
        .remedy(Remedy::Text("Name 8080 in the rule.".to_owned()))
        .remedy(Remedy::Yaml("kind: NetworkPolicy\n".to_owned()));
        let mut open = Finding::new(Code::EgressOnly, policy(None), "ingress is open");
        open.assumptions.push(Code::ConfigByPins);
        let stale = Finding::new(Code::AgentStale, node, "the agent is behind");
        let again = Finding { sentence: "and here too".to_owned(), ..port.clone() };
        let unjudged = Unjudged { what: "NAT IPs".to_owned(), why: "Azure answers 403".to_owned() };
        Lint { findings: vec![port, stale, again, open], unjudged: vec![unjudged], ..Lint::default() }
    }

    fn of(lint: &Lint) -> Value {
        let mut out = Vec::new();
        sarif(lint, &mut out).expect("a log");
        serde_json::from_slice(&out).expect("one JSON object")
    }

    /// What the standard asks for (SARIF 2.1.0, 3.13–3.28); returns what lacks.
    fn lacks(log: &Value) -> Vec<String> {
        let mut lacks = Vec::new();
        let mut ask = |holds: bool, what: String| {
            if !holds {
                lacks.push(what);
            }
        };
        ask(log["version"] == "2.1.0", "version".to_owned());
        ask(log["runs"].is_array(), "runs".to_owned());
        for run in log["runs"].as_array().into_iter().flatten() {
            let driver = &run["tool"]["driver"];
            ask(driver["name"].is_string(), "tool.driver.name".to_owned());
            let rules = driver["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
            for rule in rules {
                let id = &rule["id"];
                ask(id.is_string(), format!("id of {rule}"));
                ask(rules.iter().filter(|other| other["id"] == *id).count() == 1, format!("rule {id} once"));
                ask(rule["shortDescription"]["text"].is_string(), format!("text of rule {id}"));
                ask(rule["help"]["text"].is_string(), format!("help of rule {id}"));
            }
            for invocation in run["invocations"].as_array().into_iter().flatten() {
                ask(invocation["executionSuccessful"].is_boolean(), "executionSuccessful".to_owned());
                for one in invocation["toolExecutionNotifications"].as_array().into_iter().flatten() {
                    ask(one["message"]["text"].is_string(), "text of a notification".to_owned());
                }
            }
            ask(run["results"].is_array(), "results".to_owned());
            for result in run["results"].as_array().into_iter().flatten() {
                ask(result["message"]["text"].is_string(), format!("message of {result}"));
                let level = result["level"].as_str().unwrap_or_default();
                ask(["none", "note", "warning", "error"].contains(&level), format!("level `{level}`"));
                let idx = result["ruleIndex"].as_u64().and_then(|idx| usize::try_from(idx).ok());
                let rule = idx.and_then(|idx| rules.get(idx));
                ask(
                    rule.is_some_and(|rule| rule["id"] == result["ruleId"]),
                    format!("rule of {}", result["ruleId"]),
                );
                for location in result["locations"].as_array().into_iter().flatten() {
                    let physical = &location["physicalLocation"];
                    let uri = physical["artifactLocation"]["uri"].as_str().unwrap_or_default();
                    ask(!uri.is_empty() && !uri.contains(' '), format!("uri `{uri}`"));
                    for field in ["startLine", "startColumn"] {
                        let from_one = physical["region"][field].as_u64().is_none_or(|value| value > 0);
                        ask(from_one, format!("{field} counts from 1"));
                    }
                }
            }
        }
        lacks
    }

    #[test]
    fn a_log_has_what_the_standard_asks_for() {
        assert_eq!(lacks(&of(&sample())), Vec::<String>::new());
        assert_eq!(lacks(&of(&Lint::default())), Vec::<String>::new(), "nothing found");
    }

    #[test]
    fn what_lacks_would_be_seen() {
        let log = of(&sample());
        let without = |pointer: &str, value: Value| {
            let mut spoiled = log.clone();
            *spoiled.pointer_mut(pointer).expect("it is there") = value;
            lacks(&spoiled)
        };
        for (pointer, value) in [
            ("/version", json!("2.0.0")),
            ("/runs/0/tool/driver/name", Value::Null),
            ("/runs/0/tool/driver/rules/1/id", json!("PLS-26")),
            ("/runs/0/results/0/message/text", Value::Null),
            ("/runs/0/results/0/ruleIndex", json!(1)),
            ("/runs/0/results/1/level", json!("fatal")),
            ("/runs/0/results/0/locations/0/physicalLocation/region/startLine", json!(0)),
            ("/runs/0/results/0/locations/0/physicalLocation/artifactLocation/uri", json!("a b")),
            ("/runs/0/invocations/0/toolExecutionNotifications/0/message/text", Value::Null),
        ] {
            assert!(!without(pointer, value).is_empty(), "{pointer}");
        }
    }

    #[test]
    fn a_log_in_full() {
        let mut log = of(&sample());
        // The pages have tests of their own.
        for rule in log["runs"][0]["tool"]["driver"]["rules"].as_array_mut().expect("rules") {
            rule.as_object_mut().expect("a rule").remove("help");
        }
        for result in log["runs"][0]["results"].as_array_mut().expect("results") {
            result.as_object_mut().expect("a result").remove("properties");
        }
        expect![[r#"
            {
              "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
              "runs": [
                {
                  "columnKind": "unicodeCodePoints",
                  "invocations": [
                    {
                      "executionSuccessful": true,
                      "toolExecutionNotifications": [
                        {
                          "level": "warning",
                          "message": {
                            "text": "not judged: NAT IPs: Azure answers 403"
                          }
                        }
                      ]
                    }
                  ],
                  "results": [
                    {
                      "level": "error",
                      "locations": [
                        {
                          "logicalLocations": [
                            {
                              "fullyQualifiedName": "NetworkPolicy/shop/allow-pls",
                              "kind": "resource",
                              "name": "allow-pls"
                            }
                          ],
                          "physicalLocation": {
                            "artifactLocation": {
                              "uri": "policies/allow%20pls.yaml"
                            },
                            "region": {
                              "startColumn": 5,
                              "startLine": 12
                            }
                          }
                        }
                      ],
                      "message": {
                        "text": "the rule names port 80, the pod listens on 8080.\nProof: service shop/pls-app has targetPort 8080 (kubernetes).\nRemedy: Name 8080 in the rule.\nApply:\nkind: NetworkPolicy\n"
                      },
                      "partialFingerprints": {
                        "codeAndObject/v1": "PLS-26: NetworkPolicy shop/allow-pls"
                      },
                      "ruleId": "PLS-26",
                      "ruleIndex": 0
                    },
                    {
                      "level": "error",
                      "locations": [
                        {
                          "logicalLocations": [
                            {
                              "fullyQualifiedName": "Node/this node",
                              "kind": "resource",
                              "name": "this node"
                            }
                          ],
                          "physicalLocation": {
                            "artifactLocation": {
                              "description": {
                                "text": "an object of the cluster, not a file"
                              },
                              "uri": "Node/this%20node"
                            }
                          }
                        }
                      ],
                      "message": {
                        "text": "the agent is behind."
                      },
                      "partialFingerprints": {
                        "codeAndObject/v1": "PLS-46: Node this node"
                      },
                      "ruleId": "PLS-46",
                      "ruleIndex": 2
                    },
                    {
                      "level": "error",
                      "locations": [
                        {
                          "logicalLocations": [
                            {
                              "fullyQualifiedName": "NetworkPolicy/shop/allow-pls",
                              "kind": "resource",
                              "name": "allow-pls"
                            }
                          ],
                          "physicalLocation": {
                            "artifactLocation": {
                              "uri": "policies/allow%20pls.yaml"
                            },
                            "region": {
                              "startColumn": 5,
                              "startLine": 12
                            }
                          }
                        }
                      ],
                      "message": {
                        "text": "and here too.\nProof: service shop/pls-app has targetPort 8080 (kubernetes).\nRemedy: Name 8080 in the rule.\nApply:\nkind: NetworkPolicy\n"
                      },
                      "partialFingerprints": {
                        "codeAndObject/v1": "PLS-26: NetworkPolicy shop/allow-pls"
                      },
                      "ruleId": "PLS-26",
                      "ruleIndex": 0
                    },
                    {
                      "level": "warning",
                      "locations": [
                        {
                          "logicalLocations": [
                            {
                              "fullyQualifiedName": "NetworkPolicy/shop/allow-pls",
                              "kind": "resource",
                              "name": "allow-pls"
                            }
                          ],
                          "physicalLocation": {
                            "artifactLocation": {
                              "description": {
                                "text": "an object of the cluster, not a file"
                              },
                              "uri": "NetworkPolicy/shop/allow-pls"
                            }
                          }
                        }
                      ],
                      "message": {
                        "text": "ingress is open.\nAssumes: The agent's configuration is taken from its maps (config-by-pins)."
                      },
                      "partialFingerprints": {
                        "codeAndObject/v1": "PLS-28: NetworkPolicy shop/allow-pls"
                      },
                      "ruleId": "PLS-28",
                      "ruleIndex": 1
                    }
                  ],
                  "tool": {
                    "driver": {
                      "name": "plsprobe",
                      "rules": [
                        {
                          "defaultConfiguration": {
                            "level": "error"
                          },
                          "id": "PLS-26",
                          "name": "PortNotTargetPort",
                          "properties": {
                            "tags": [
                              "policy"
                            ]
                          },
                          "shortDescription": {
                            "text": "The rule names the service's port, not the pod's."
                          }
                        },
                        {
                          "defaultConfiguration": {
                            "level": "warning"
                          },
                          "id": "PLS-28",
                          "name": "EgressOnly",
                          "properties": {
                            "tags": [
                              "passes although"
                            ]
                          },
                          "shortDescription": {
                            "text": "An egress-only policy leaves ingress open."
                          }
                        },
                        {
                          "defaultConfiguration": {
                            "level": "error"
                          },
                          "id": "PLS-46",
                          "name": "AgentStale",
                          "properties": {
                            "tags": [
                              "node and CNI"
                            ]
                          },
                          "shortDescription": {
                            "text": "The agent has not installed the policy on this node."
                          }
                        }
                      ],
                      "semanticVersion": "0.1.0"
                    }
                  }
                }
              ],
              "version": "2.1.0"
            }"#]].assert_eq(&serde_json::to_string_pretty(&log).expect("JSON"));
    }

    #[test]
    fn paths_become_uris() {
        for (path, expected) in
            [("a/b.yaml", "a/b.yaml"), ("/etc/a b", "file:///etc/a%20b"), ("ä#?", "%C3%A4%23%3F")]
        {
            assert_eq!(uri(path), expected);
        }
    }
}
