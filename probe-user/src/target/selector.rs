//! Label selectors, as `kubectl -l` takes them.
//!
//! Source: Kubernetes, "Labels and selectors", and `k8s.io/apimachinery/pkg/labels/selector.go`.

use anyhow::{Result, bail, ensure};

/// What labels must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

/// What the label of a key must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    /// The values it may have; `None` for any.
    values: Option<Vec<String>>,
    /// Whether it is the other way round: not one of these, or not there.
    is_not: bool,
}

impl Selector {
    /// Whether it is meant as one: no pod's name has such letters.
    pub(super) fn is_meant(text: &str) -> bool {
        text.contains(['=', '!', ',', '('])
    }

    /// Reads `key=value`, `key!=value`, `key in (a,b)`, `key notin (a,b)`, `key` and `!key`, with commas between.
    ///
    /// # Errors
    ///
    /// If it is none of these.
    pub(super) fn parse(text: &str) -> Result<Self> {
        split(text).into_iter().map(Requirement::parse).collect::<Result<_>>().map(Self)
    }

    /// Whether labels are like that; `values` gives those of a key.
    pub(super) fn selects<'a>(&self, values: impl Fn(&str) -> Vec<&'a str>) -> bool {
        self.0.iter().all(|wanted| {
            let found = values(&wanted.key);
            let fits = match &wanted.values {
                None => !found.is_empty(),
                Some(any) => found.iter().any(|value| any.iter().any(|own| own == value)),
            };
            fits != wanted.is_not
        })
    }
}

impl Requirement {
    fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let new = |key: &str, values: Option<Vec<&str>>, is_not| {
            let key = key.trim();
            ensure!(
                !key.is_empty() && !key.contains(|c: char| c.is_whitespace() || "=!(),".contains(c)),
                "found `{text}`, expected `key=value`, `key!=value`, `key in (a,b)`, `key notin (a,b)`, `key` or `!key`"
            );
            let values = values.map(|values| values.iter().map(|value| value.trim().to_owned()).collect());
            Ok(Self { key: key.to_owned(), values, is_not })
        };
        if let Some((head, list)) = text.split_once('(') {
            let Some(list) = list.strip_suffix(')') else { bail!("found `{text}`, expected `)` at its end") };
            let values = Some(list.split(',').collect());
            let head = head.trim_end();
            return match head.rsplit_once(char::is_whitespace) {
                Some((key, "in")) => new(key, values, false),
                Some((key, "notin")) => new(key, values, true),
                _ => bail!("found `{text}`, expected `key in (a,b)` or `key notin (a,b)`"),
            };
        }
        if let Some((key, value)) = text.split_once("!=") {
            return new(key, Some(vec![value]), true);
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return new(key, Some(vec![value]), false);
        }
        match text.strip_prefix('!') {
            Some(key) => new(key, None, true),
            None => new(text, None, false),
        }
    }
}

/// Between the commas that are in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let is_between = |c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    };
    text.split(is_between).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(selector: &str, labels: &[(&str, &str)], expected: bool) {
        let parsed = Selector::parse(selector).expect("a selector");
        let values =
            |key: &str| labels.iter().filter(|(own, _)| *own == key).map(|(_, value)| *value).collect();
        assert_eq!(parsed.selects(values), expected, "{selector} {labels:?}");
    }

    #[test]
    fn labels_that_are_selected() {
        let labels = [("app", "pls-app"), ("tier", "web"), ("empty", "")];
        for selects in [
            "app=pls-app",
            "app==pls-app",
            " app = pls-app , tier=web",
            "app=pls-app,tier!=db",
            "app=pls-app,other!=x",
            "tier in (db, web)",
            "tier notin (db,cache)",
            "other notin (x)",
            "app",
            "app,!other",
            "empty=",
        ] {
            check(selects, &labels, true);
        }
        for selects_not in [
            "app=other",
            "app=pls-app,tier=db",
            "app=pls-app,tier!=web",
            "tier in (db)",
            "other in (x)",
            "tier notin (web)",
            "other",
            "!app",
            "other=",
            "empty!=",
        ] {
            check(selects_not, &labels, false);
        }
    }

    #[test]
    fn what_is_no_selector() {
        let error = |text: &str| Selector::parse(text).unwrap_err().to_string();
        for wrong in ["=x", "a b=x", "app=x,", "", "!", "!!a", "a=b,="] {
            let error = error(wrong);
            assert!(error.contains(", expected `key"), "{wrong}: {error}");
        }
        assert_eq!(error("app in (a,b"), "found `app in (a,b`, expected `)` at its end");
        assert_eq!(error("app at (a)"), "found `app at (a)`, expected `key in (a,b)` or `key notin (a,b)`");
        for (text, is_meant) in [
            ("app=x", true),
            ("!app", true),
            ("a in (b)", true),
            ("a,b", true),
            ("pls-app", false),
            ("n/pls-app", false),
        ] {
            assert_eq!(Selector::is_meant(text), is_meant, "{text}");
        }
    }
}
