//! One list of the API, page by page. Objects are kept one by one as they come: no page is ever held whole.

use std::{
    collections::BTreeSet,
    fmt,
    io::{BufReader, Read},
};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, de::IoRead};

use super::{access::Access, resources::Resource};
use crate::sources::{
    http::{self, Request, escape},
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
    /// There is more of it than is kept.
    TooMuch(String),
}

impl Failure {
    /// What happened, and what to do.
    pub(super) fn explained(&self, resource: &Resource) -> String {
        match self {
            Self::Answer(why) | Self::TooMuch(why) => why.clone(),
            Self::Http(error) => format!("{error}{}", advice(error.status(), resource, resource.right)),
        }
    }
}

/// What to do where a request for a list failed so; `right` is what it needs.
pub(super) fn advice(status: Option<u16>, resource: &Resource, right: &str) -> String {
    match status {
        Some(401) => {
            "; the token or the certificate is not accepted: is it expired, or another cluster's?".to_owned()
        }
        Some(403) => format!("; allow whoever asks to {right} (docs/permissions.md)"),
        Some(404) if !resource.is_single => "; this API server does not have that list".to_owned(),
        Some(410) => "; the list changes faster than it is read: try again".to_owned(),
        Some(429 | 500 | 502..=504) => "; the API server is busy or not well: try again".to_owned(),
        _ => String::new(),
    }
}

/// Who takes the objects of a list.
pub(super) trait Take {
    /// Forgets what was taken: the list is read from its beginning.
    fn begin(&mut self);

    /// Takes an object, as far as it is kept.
    ///
    /// # Errors
    ///
    /// If it takes no more.
    fn object(&mut self, object: Value) -> Result<(), Failure>;
}

impl Take for Vec<Value> {
    fn begin(&mut self) {
        self.clear();
    }

    fn object(&mut self, object: Value) -> Result<(), Failure> {
        if self.len() >= MOST {
            return Err(Failure::TooMuch(format!(
                "more than {MOST} objects, too many to read for one answer"
            )));
        }
        self.push(object);
        Ok(())
    }
}

/// Every object of a list, as far as it is kept.
///
/// # Errors
///
/// If there is no such list, it may not be read, or one of its pages cannot be had: half a list is none.
pub(super) fn read(access: &Access, resource: &Resource) -> Result<Vec<Value>, Failure> {
    let send = |request: &Request| {
        let body = access.client.send(request)?;
        Ok(Box::new(std::io::Cursor::new(body)) as Box<dyn Read>)
    };
    let keep = Pick::new(resource.keep);
    let mut items = Vec::new();
    let reader = Reader { access, resource, query: resource.query, keep: &keep, fetch: &send };
    reader.read(&mut items)?;
    Ok(items)
}

/// How a list is asked for.
pub(super) struct Reader<'a> {
    pub(super) access: &'a Access,
    pub(super) resource: &'a Resource,
    /// A query, beside that of pages; empty for none.
    pub(super) query: &'a str,
    /// What is kept of each object.
    pub(super) keep: &'a Pick,
    /// Sends its requests.
    pub(super) fetch: &'a Fetch<'a>,
}

/// Sends a request, for the body of its answer.
pub(super) type Fetch<'a> = dyn Fn(&Request) -> Result<Box<dyn Read>, http::Error> + 'a;

/// A list that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it is.
    pub(super) path: &'static str,
    /// Its `resourceVersion`; empty if it says none.
    pub(super) version: String,
}

impl Reader<'_> {
    /// Gives every object to `take`; `None` if there is no such list, and none needed.
    ///
    /// # Errors
    ///
    /// As [`read`].
    pub(super) fn read(&self, take: &mut dyn Take) -> Result<Option<Found>, Failure> {
        let mut last = None;
        take.begin();
        for path in self.resource.paths {
            match self.read_at(path, take) {
                Err(Failure::Http(error)) if error.status() == Some(404) => last = Some(error),
                version => return version.map(|version| Some(Found { path, version })),
            }
        }
        match last {
            Some(error) if !self.resource.is_optional => Err(Failure::Http(error)),
            // Cilium's types are not there: nobody can have made one.
            _ => Ok(None),
        }
    }

    fn read_at(&self, path: &str, take: &mut dyn Take) -> Result<String, Failure> {
        let mut beginnings = 1;
        let (mut seen, mut next) = (BTreeSet::new(), None::<String>);
        loop {
            let page = match self.page(path, next.as_deref(), take) {
                // Pages expire when much changes: those that were read do not belong to those that come.
                Err(Failure::Http(error)) if error.status() == Some(410) && beginnings < BEGINNINGS => {
                    beginnings += 1;
                    take.begin();
                    (seen, next) = (BTreeSet::new(), None);
                    continue;
                }
                page => page?,
            };
            match page.next.filter(|token| !token.is_empty()) {
                None => return Ok(page.version),
                Some(token) if !seen.insert(token.clone()) => {
                    return Err(Failure::Answer(format!(
                        "`{path}`: found the same page twice, expected a list"
                    )));
                }
                token => next = token,
            }
        }
    }

    fn page(&self, path: &str, next: Option<&str>, take: &mut dyn Take) -> Result<Page, Failure> {
        let mut query = Vec::new();
        if !self.resource.is_single {
            query.push(format!("limit={PAGE}"));
        }
        if !self.query.is_empty() {
            query.push(self.query.to_owned());
        }
        query.extend(next.map(|token| format!("continue={}", escape(token))));
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let request = self.access.request(format!("{path}{query}"));
        let request = request.map_err(|error| Failure::Answer(format!("{error:#}")))?;
        let body = BufReader::new((self.fetch)(&request).map_err(Failure::Http)?);
        let mut json = serde_json::Deserializer::from_reader(body);
        let mut refused = None;
        let read = self.parse(&mut json, take, &mut refused).and_then(|page| json.end().map(|()| page));
        match (read, refused) {
            (Ok(page), None) => Ok(page),
            (_, Some(Failure::TooMuch(why))) => Err(Failure::TooMuch(format!("`{path}`: {why}"))),
            (_, Some(failure)) => Err(failure),
            (Err(error), None) => Err(Failure::Answer(if error.is_io() {
                format!("`{path}`: {error}")
            } else if error.is_data() {
                format!("`{path}`: found {error}, expected a list")
            } else {
                format!("`{path}`: the answer is no JSON: {error}")
            })),
        }
    }

    fn parse<R: Read>(
        &self,
        json: &mut serde_json::Deserializer<IoRead<R>>,
        take: &mut dyn Take,
        refused: &mut Option<Failure>,
    ) -> serde_json::Result<Page> {
        if !self.resource.is_single {
            return json.deserialize_map(PageOf { keep: self.keep, take, refused });
        }
        let object = self.keep.deserialize(json)?.unwrap_or_default();
        *refused = take.object(object).err();
        Ok(Page::default())
    }
}

/// What a page says of the list.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Page {
    #[serde(rename = "resourceVersion")]
    version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Reads a page, and gives its objects away.
struct PageOf<'a> {
    keep: &'a Pick,
    take: &'a mut dyn Take,
    refused: &'a mut Option<Failure>,
}

impl<'de> Visitor<'de> for PageOf<'_> {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Page, A::Error> {
        let (mut page, mut has_items) = (Page::default(), false);
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "metadata" => page = map.next_value::<Option<Page>>()?.unwrap_or_default(),
                "items" => {
                    map.next_value_seed(Items(&mut self))?;
                    has_items = true;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if has_items { Ok(page) } else { Err(A::Error::custom("an object without items")) }
    }
}

struct Items<'a, 'b>(&'a mut PageOf<'b>);

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(object) = items.next_element_seed(self.0.keep)? {
            if let Err(failure) = self.0.take.object(object.unwrap_or_default()) {
                *self.0.refused = Some(failure);
                return Err(A::Error::custom("no more is taken"));
            }
        }
        Ok(())
    }
}
