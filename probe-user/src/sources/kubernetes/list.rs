//! One list of the API, page by page.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{access::Access, resources::Resource};
use crate::sources::{
    http::{self, escape},
    pick::Pick,
};

/// Objects in a page.
const PAGE: usize = 500;
/// More objects than that are not a list that anyone reads for one answer.
const MOST: usize = 200_000;
/// How often a list is begun anew because it changed too much while it was read.
const BEGINNINGS: usize = 3;

/// Why there is no list.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request failed.
    Http(http::Error),
    /// It was answered, but not with a list.
    Answer(String),
}

impl Failure {
    /// What happened, and what to do.
    pub(super) fn explained(&self, resource: &Resource) -> String {
        let error = match self {
            Self::Answer(why) => return why.clone(),
            Self::Http(error) => error,
        };
        let advice = match error.status() {
            Some(401) => {
                "; the token or the certificate is not accepted: is it expired, or another cluster's?"
                    .to_owned()
            }
            Some(403) => format!("; allow whoever asks to {} (docs/permissions.md)", resource.right),
            Some(404) if !resource.is_single => "; this API server does not have that list".to_owned(),
            Some(410) => "; the list changes faster than it is read: try again".to_owned(),
            Some(429 | 500 | 502..=504) => "; the API server is busy or not well: try again".to_owned(),
            _ => String::new(),
        };
        format!("{error}{advice}")
    }
}

/// Every object of a list, as far as it is kept.
///
/// # Errors
///
/// If there is no such list, it may not be read, or one of its pages cannot be had: half a list is none.
pub(super) fn read(access: &Access, resource: &Resource) -> Result<Vec<Value>, Failure> {
    let mut last = None;
    for path in resource.paths {
        match read_at(access, resource, path) {
            Err(Failure::Http(error)) if error.status() == Some(404) => last = Some(error),
            other => return other,
        }
    }
    match last {
        // Cilium's types are not there: nobody can have made one.
        _ if resource.is_optional => Ok(Vec::new()),
        Some(error) => Err(Failure::Http(error)),
        None => Ok(Vec::new()),
    }
}

fn read_at(access: &Access, resource: &Resource, path: &str) -> Result<Vec<Value>, Failure> {
    let keep = Pick::new(resource.keep);
    let mut beginnings = 1;
    let (mut items, mut seen, mut next) = (Vec::new(), BTreeSet::new(), None::<String>);
    loop {
        let page = match page(access, resource, path, next.as_deref()) {
            // Pages expire when much changes: those that were read do not belong to those that come.
            Err(Failure::Http(error)) if error.status() == Some(410) && beginnings < BEGINNINGS => {
                beginnings += 1;
                (items, seen, next) = (Vec::new(), BTreeSet::new(), None);
                continue;
            }
            page => page?,
        };
        if resource.is_single {
            return Ok(vec![keep.of(&page)]);
        }
        let wrong = |found: &str| Failure::Answer(format!("`{path}`: found {found}, expected a list"));
        let found = match page.get("items") {
            Some(Value::Array(found)) => found.as_slice(),
            Some(Value::Null) => &[],
            _ => return Err(wrong("an object without items")),
        };
        items.extend(found.iter().map(|item| keep.of(item)));
        if items.len() > MOST {
            return Err(Failure::Answer(format!(
                "`{path}`: more than {MOST} objects, too many to read for one answer"
            )));
        }
        match page.pointer("/metadata/continue").and_then(Value::as_str).filter(|token| !token.is_empty()) {
            None => return Ok(items),
            Some(token) if !seen.insert(token.to_owned()) => return Err(wrong("the same page twice")),
            Some(token) => next = Some(token.to_owned()),
        }
    }
}

fn page(access: &Access, resource: &Resource, path: &str, next: Option<&str>) -> Result<Value, Failure> {
    let answer = |error| Failure::Answer(format!("{error:#}"));
    let mut query = Vec::new();
    if !resource.is_single {
        query.push(format!("limit={PAGE}"));
    }
    if !resource.query.is_empty() {
        query.push(resource.query.to_owned());
    }
    query.extend(next.map(|token| format!("continue={}", escape(token))));
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    let request = access.request(format!("{path}{query}")).map_err(answer)?;
    let body = access.client.send(&request).map_err(Failure::Http)?;
    let wrong = |error| Failure::Answer(format!("`{path}`: the answer is no JSON: {error}"));
    serde_json::from_slice(&body).map_err(wrong)
}
