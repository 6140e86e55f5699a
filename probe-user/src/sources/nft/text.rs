//! A rule of nft's JSON in nft's own words, for the evidence. What has no words here is shown as JSON.

use serde_json::Value;

/// Statements and the rule's comment.
pub(super) fn statements(statements: &[Value], comment: Option<&str>) -> String {
    let mut words: Vec<String> = statements.iter().filter_map(statement).collect();
    words.extend(comment.map(|comment| format!("comment \"{comment}\"")));
    words.join(" ")
}

fn statement(value: &Value) -> Option<String> {
    let (name, body) = only(value)?;
    Some(match name {
        // Counts of packets differ from print to print.
        "counter" => return None,
        "match" => {
            let (left, right) = (expression(&body["left"]), expression(&body["right"]));
            match body["op"].as_str() {
                Some("==" | "in") | None => format!("{left} {right}"),
                Some(op) => format!("{left} {op} {right}"),
            }
        }
        "vmap" => format!("{} vmap {}", expression(&body["key"]), expression(&body["data"])),
        "jump" | "goto" => format!("{name} {}", expression(&body["target"])),
        "accept" | "drop" | "return" | "continue" | "masquerade" | "reject" | "log" | "notrack" => {
            name.to_owned()
        }
        "dnat" | "snat" => {
            let port = body.get("port").map_or_else(String::new, |port| format!(":{}", expression(port)));
            format!("{name} to {}{port}", body.get("addr").map_or_else(String::new, expression))
        }
        "mangle" => format!("{} set {}", expression(&body["key"]), expression(&body["value"])),
        "set" => {
            let op = body["op"].as_str().unwrap_or("set");
            format!("{op} {} {{ {} }}", expression(&body["set"]), expression(&body["elem"]))
        }
        "limit" => format!("limit rate {}/{}", expression(&body["rate"]), expression(&body["per"])),
        "xt" => {
            let (kind, name) = (body["type"].as_str().unwrap_or("extension"), body["name"].as_str());
            format!("xt {kind} {}", name.unwrap_or("without a name"))
        }
        _ => value.to_string(),
    })
}

/// The name and content of an object with one member.
pub(super) fn only(value: &Value) -> Option<(&str, &Value)> {
    let object = value.as_object()?;
    let (name, body) = object.iter().next()?;
    Some((name.as_str(), body))
}

fn expression(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(expression).collect::<Vec<_>>().join(","),
        Value::Object(_) => object(value).unwrap_or_else(|| value.to_string()),
        _ => value.to_string(),
    }
}

fn object(value: &Value) -> Option<String> {
    let (name, body) = only(value)?;
    let list = |separator: &str| -> Option<String> {
        Some(body.as_array()?.iter().map(expression).collect::<Vec<_>>().join(separator))
    };
    Some(match name {
        "payload" => format!("{} {}", body["protocol"].as_str()?, body["field"].as_str()?),
        "meta" => match body["key"].as_str()? {
            key @ ("mark" | "iif" | "oif" | "iifname" | "oifname") => key.to_owned(),
            key => format!("meta {key}"),
        },
        "ct" => format!("ct {}", body["key"].as_str()?),
        "fib" => format!("fib {} {}", expression(&body["flags"]), body["result"].as_str()?),
        "concat" => list(" . ")?,
        "set" => {
            let element = |element: &Value| match element.as_array().map(Vec::as_slice) {
                Some([key, verdict]) => {
                    let verdict = statement(verdict).unwrap_or_else(|| expression(verdict));
                    format!("{} : {verdict}", expression(key))
                }
                _ => expression(element),
            };
            let all: Vec<String> = body.as_array()?.iter().map(element).collect();
            format!("{{ {} }}", all.join(", "))
        }
        "prefix" => format!("{}/{}", expression(&body["addr"]), body["len"]),
        "range" => list("-")?,
        "elem" => expression(&body["val"]),
        "&" | "|" | "^" => {
            let [left, right] = body.as_array()?.as_slice() else { return None };
            format!("{} {name} {}", expression(left), bits(right))
        }
        "numgen" => format!("numgen {} mod {}", body["mode"].as_str()?, body["mod"]),
        "map" => format!("{} map {}", expression(&body["key"]), expression(&body["data"])),
        _ => return None,
    })
}

/// Bits are read in hexadecimal.
fn bits(value: &Value) -> String {
    value.as_u64().map_or_else(|| expression(value), |number| format!("{number:#x}"))
}
