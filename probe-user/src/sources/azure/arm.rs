//! Azure's resource manager: what it says of Private Link services, load balancers and their network.

use serde_json::Value;

use super::token::Tokens;
use crate::sources::http::{self, Client, Request};

/// The version of the network API whose answers are read; all later ones have the same fields.
const VERSION: &str = "2021-05-01";
/// More pages than that are no list that anyone reads for one answer.
const PAGES: usize = 200;

/// The resource manager, and who asks it.
pub(super) struct Arm<'a> {
    pub(super) client: &'a Client,
    pub(super) tokens: &'a Tokens,
}

/// Why something could not be had.
#[derive(Debug)]
pub(super) enum Failure {
    /// No token was given: nothing else will succeed either.
    Token(String),
    /// The request failed.
    Http(http::Error),
    /// It was answered, but not as it should be.
    Answer(String),
}

impl Failure {
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Http(error) => error.status(),
            _ => None,
        }
    }

    /// What happened, and what to do; `right` is what whoever asks must be allowed.
    pub(super) fn explained(&self, right: &str, identity: &str) -> String {
        let error = match self {
            Self::Token(why) | Self::Answer(why) => return why.clone(),
            Self::Http(error) => error,
        };
        let advice = match error.status() {
            Some(401) => format!("; the token of {identity} is not accepted: is it of this tenant?"),
            Some(403) => format!(
                "; give {identity} the right `{right}`, as the role Reader has it (docs/permissions.md)"
            ),
            Some(429) => "; Azure limits how often it is asked: try again later".to_owned(),
            Some(500..=599) => "; Azure is not well: try again".to_owned(),
            _ => String::new(),
        };
        format!("{error}{advice}")
    }
}

impl Arm<'_> {
    /// One resource, by its id.
    pub(super) fn get(&self, id: &str) -> Result<Value, Failure> {
        self.send(&format!("{id}?api-version={VERSION}"), id)
    }

    /// A list, all of its pages.
    pub(super) fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut next = format!("{path}?api-version={VERSION}");
        for _ in 0..PAGES {
            let mut page = self.send(&next, path)?;
            let Some(Value::Array(found)) = page.get_mut("value").map(Value::take) else {
                return Err(Failure::Answer(format!(
                    "`{path}`: found an object without `value`, expected a list"
                )));
            };
            items.extend(found);
            let Some(link) = page.get("nextLink").and_then(Value::as_str).filter(|link| !link.is_empty())
            else {
                return Ok(items);
            };
            next = self.on_same_server(link, path)?;
        }
        Err(Failure::Answer(format!("`{path}`: more than {PAGES} pages, too many to read for one answer")))
    }

    /// The path of a link to the next page: a token goes nowhere else.
    fn on_same_server(&self, link: &str, path: &str) -> Result<String, Failure> {
        let base = self.client.base.to_string();
        let host_end =
            link.find("://").and_then(|at| Some(at + 3 + link[at + 3..].find('/')?)).unwrap_or(link.len());
        let (server, rest) = link.split_at(host_end);
        // Azure writes the port where there is no need.
        let plain = |text: &str| text.trim_end_matches(":443").to_ascii_lowercase();
        if plain(server) != plain(&base) {
            let shown = http::shown(server);
            return Err(Failure::Answer(format!(
                "`{path}`: its next page is at `{shown}`, expected it at `{base}`; a token is not sent there"
            )));
        }
        Ok(rest.to_owned())
    }

    fn send(&self, path_and_query: &str, shown: &str) -> Result<Value, Failure> {
        let mut has_new_token = false;
        loop {
            let token = self.tokens.token().map_err(|error| Failure::Token(format!("{error:#}")))?;
            let request = Request::get(path_and_query).with("Authorization", format!("Bearer {token}"));
            match self.client.send(&request) {
                Ok(body) => {
                    let wrong = |error| Failure::Answer(format!("`{shown}`: the answer is no JSON: {error}"));
                    return serde_json::from_slice(&body).map_err(wrong);
                }
                // It may have ended early, or on a clock that is not ours.
                Err(error) if error.status() == Some(401) && !has_new_token => {
                    self.tokens.forget();
                    has_new_token = true;
                }
                Err(error) => return Err(Failure::Http(error)),
            }
        }
    }
}
