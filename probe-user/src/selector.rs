//! Label selectors, as `kubectl` and Hubble write them.
//!
//! Source: Kubernetes' `labels.Parse`; that a key may name a label's source is Hubble's own.

/// Requirements, all of which must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    /// `k8s`, `reserved`; `None` for any.
    source: Option<String>,
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether it is meant as one, and not as a pod's name, which has no such letters.
    pub(crate) fn is_meant(text: &str) -> bool {
        text.contains(['=', '!', ',', '('])
    }

    /// Reads `app=pls-app,tier in (web, api),!canary`. A key may begin with a source and a colon.
    ///
    /// # Errors
    ///
    /// If it is none, as a sentence.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "`{text}` is no label selector; expected such as `app=pls-app`, `k8s:app in (a, b)` or `!canary`"
            )
        };
        let parts = split(text).ok_or_else(refused)?;
        let requirements = parts.into_iter().map(|part| requirement(part).ok_or_else(refused));
        requirements.collect::<Result<_, _>>().map(Self)
    }

    /// Whether labels with their sources (`k8s:app=pls-app`) are selected.
    pub(crate) fn matches(&self, labels: &[String]) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &[String]) -> bool {
        let value = labels.iter().find_map(|label| self.value(label));
        let is_listed = || value.is_some_and(|value| self.values.iter().any(|wanted| wanted == value));
        match self.operator {
            Operator::In => is_listed(),
            Operator::NotIn => !is_listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }

    /// The label's value, if it is the one that is meant.
    fn value<'a>(&self, label: &'a str) -> Option<&'a str> {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        let (source, key) = name.split_once(':').unwrap_or(("", name));
        let is_meant = key == self.key && self.source.as_deref().is_none_or(|wanted| wanted == source);
        is_meant.then_some(value)
    }
}

/// At the commas that are in no parentheses.
fn split(text: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let (mut start, mut is_inside) = (0, false);
    for (at, character) in text.char_indices() {
        match (character, is_inside) {
            (',', false) => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            ('(', false) => is_inside = true,
            (')', true) => is_inside = false,
            ('(', true) | (')', false) => return None,
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (!is_inside).then_some(parts)
}

fn requirement(part: &str) -> Option<Requirement> {
    let part = part.trim();
    let of = |name: &str, operator, values: Vec<&str>| {
        let name = name.trim();
        let (source, key) = name.split_once(':').map_or((None, name), |(source, key)| (Some(source), key));
        let source = source.filter(|source| *source != "any");
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
        };
        let values: Vec<String> = values.into_iter().map(|value| value.trim().to_owned()).collect();
        let is_fine = is_name(key)
            && source.is_none_or(is_name)
            && values.iter().all(|value| value.is_empty() || is_name(value));
        let requirement =
            || Requirement { source: source.map(str::to_owned), key: key.to_owned(), operator, values };
        is_fine.then(requirement)
    };
    if let Some(list) = part.strip_suffix(')') {
        let (head, list) = list.split_once('(')?;
        let (name, word) = head.trim().rsplit_once(char::is_whitespace)?;
        let operator = match word {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            _ => return None,
        };
        return of(name, operator, list.split(',').collect());
    }
    if let Some((name, value)) = part.split_once("!=") {
        return of(name, Operator::NotIn, vec![value]);
    }
    if let Some((name, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return of(name, Operator::In, vec![value]);
    }
    match part.strip_prefix('!') {
        Some(name) => of(name, Operator::DoesNotExist, Vec::new()),
        None => of(part, Operator::Exists, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_selected() {
        let labels =
            ["k8s:app=pls-app", "k8s:io.kubernetes.pod.namespace=shop", "reserved:host", "any:app.tier="]
                .map(str::to_owned);
        for (selector, is_selected) in [
            ("app=pls-app", true),
            ("app==pls-app", true),
            (" app = pls-app ", true),
            ("k8s:app=pls-app", true),
            ("any:app=pls-app", true),
            ("cidr:app=pls-app", false),
            ("app=other", false),
            ("app!=other", true),
            ("none!=other", true),
            ("app!=pls-app", false),
            ("app in (a,pls-app)", true),
            ("app in ( a , b )", false),
            ("app notin (a, b)", true),
            ("app notin (pls-app)", false),
            ("app,reserved:host", true),
            ("app,!reserved:host", false),
            ("!canary,io.kubernetes.pod.namespace=shop", true),
            ("k8s:io.kubernetes.pod.namespace in (shop),app", true),
            ("app.tier=", true),
        ] {
            assert_eq!(Selector::parse(selector).unwrap().matches(&labels), is_selected, "{selector}");
        }
    }

    #[test]
    fn what_is_meant_as_one() {
        for text in ["app=x", "!app", "a in (b)", "a,b"] {
            assert!(Selector::is_meant(text), "{text}");
        }
        for text in ["pls-app", "default/pls-app-7d9c5bd5f4-x2v8q", "app.example"] {
            assert!(!Selector::is_meant(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_selector() {
        for text in [
            "", ",", "a,", "=b", "a in", "a in (b", "a in b)", "a on (b)", "a=(b)", "a b", "a=b=c", "!",
            "a:b:c=d", "a((b))",
        ] {
            let error = Selector::parse(text).unwrap_err();
            assert!(error.contains(&format!("`{text}` is no label selector")), "{error}");
        }
    }
}
