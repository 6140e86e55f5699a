//! The objects of one list, each decoded once, when it comes.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use ipnet::IpNet;
use probe_model::world::kubernetes::{
    EndpointSlice, List, Namespace, Node, Pod, PolicyObject, Service, ServiceEvent,
};
use serde_json::Value;

/// How much of a list is kept. A list that is longer is no list: half of it would be taken for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Objects.
    pub objects: usize,
    /// Bytes of their JSON, as far as it is kept. In memory they take once (slices) to three times as much.
    pub bytes: usize,
}

/// An object that has a name.
pub(super) trait Named {
    /// Namespace, empty for the cluster's, and name.
    fn key(&self) -> (&str, &str);
}

/// Why an object is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has no name: nobody can say which one it is.
    Nameless,
    /// The list is too long: so much.
    TooMuch(String),
}

/// A list that changes.
pub(super) trait Table: Send + Sync {
    /// Begins to read the list anew; what was known stays until [`Self::end`].
    fn begin(&self);

    /// An object of the list that is read.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    fn list(&self, object: Value) -> Result<(), Refusal>;

    /// The list is read: whether it is another now.
    fn end(&self) -> bool;

    /// An object that was made or changed: whether what is kept is another now.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    fn put(&self, object: Value) -> Result<bool, Refusal>;

    /// An object that was deleted: whether it was known.
    ///
    /// # Errors
    ///
    /// [`Refusal::Nameless`].
    fn remove(&self, object: &Value) -> Result<bool, Refusal>;

    /// Forgets everything: nothing is known any more.
    fn forget(&self);

    /// Objects, and bytes of their JSON; `None` if nothing is known.
    fn size(&self) -> Option<(usize, usize)>;
}

/// See [`Table`].
pub(super) struct Kept<T> {
    decode: fn(Value) -> Result<Option<T>>,
    limits: Limits,
    state: Mutex<State<T>>,
}

struct State<T> {
    known: Held<T>,
    /// While the list is read.
    incoming: Held<T>,
    is_listed: bool,
    /// `known` as it is given away, until it changes.
    list: Option<List<T>>,
}

/// Objects by namespace and name.
struct Held<T> {
    /// Each with the bytes of its JSON.
    objects: Vec<(Arc<T>, u32)>,
    /// Those that cannot be read, and why.
    unread: BTreeMap<(String, String), String>,
    bytes: usize,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { objects: Vec::new(), unread: BTreeMap::new(), bytes: 0 }
    }
}

impl<T: Named + PartialEq> Held<T> {
    fn find(&self, key: (&str, &str)) -> Result<usize, usize> {
        // Lists come in order, or nearly so.
        match self.objects.last() {
            Some((last, _)) if last.key() < key => Err(self.objects.len()),
            _ => self.objects.binary_search_by(|(own, _)| own.key().cmp(&key)),
        }
    }

    /// Whether it is another now.
    fn put(&mut self, object: Arc<T>, bytes: u32) -> bool {
        let place = self.find(object.key());
        let is_other = match place {
            Ok(at) => *self.objects[at].0 != *object,
            Err(_) => true,
        };
        match place {
            Ok(at) => {
                let (_, before) = mem::replace(&mut self.objects[at], (object, bytes));
                self.bytes -= before as usize;
            }
            Err(at) => self.objects.insert(at, (object, bytes)),
        }
        self.bytes += bytes as usize;
        is_other
    }

    /// Whether it was there.
    fn remove(&mut self, namespace: &str, name: &str) -> bool {
        let was_unread =
            !self.unread.is_empty() && self.unread.remove(&(namespace.to_owned(), name.to_owned())).is_some();
        let Ok(at) = self.find((namespace, name)) else { return was_unread };
        let (_, bytes) = self.objects.remove(at);
        self.bytes -= bytes as usize;
        true
    }

    fn check(&self, limits: Limits) -> Result<(), Refusal> {
        if self.objects.len() + self.unread.len() > limits.objects {
            return Err(Refusal::TooMuch(format!("more than {} objects", limits.objects)));
        }
        if self.bytes > limits.bytes {
            return Err(Refusal::TooMuch(format!("objects of more than {} bytes", limits.bytes)));
        }
        Ok(())
    }
}

impl<T: Named + PartialEq> Kept<T> {
    /// None yet.
    pub(super) fn new(limits: Limits, decode: fn(Value) -> Result<Option<T>>) -> Self {
        let state = State { known: Held::default(), incoming: Held::default(), is_listed: false, list: None };
        Self { decode, limits, state: Mutex::new(state) }
    }

    /// Every object; `None` if they are not known yet, or no longer.
    ///
    /// # Errors
    ///
    /// If one of them cannot be read: which, and why.
    pub(super) fn objects(&self) -> Result<Option<List<T>>, String> {
        let state = &mut *self.lock();
        if let Some(((namespace, name), why)) = state.known.unread.first_key_value() {
            let slash = if namespace.is_empty() { "" } else { "/" };
            return Err(format!("failed to read `{namespace}{slash}{name}`: {why}"));
        }
        if !state.is_listed {
            return Ok(None);
        }
        let known = &state.known.objects;
        let list =
            state.list.get_or_insert_with(|| known.iter().map(|(object, _)| Arc::clone(object)).collect());
        Ok(Some(list.clone()))
    }

    /// Puts an object into `held`; of those that it equals, the one in `known` is shared.
    fn take(&self, object: Value, held: &mut Held<T>, known: Option<&Held<T>>) -> Result<bool, Refusal> {
        let (namespace, name) = name(&object)?;
        let bytes = u32::try_from(weight(&object)).unwrap_or(u32::MAX);
        let is_other = match (self.decode)(object) {
            Ok(Some(object)) => {
                let same = known.and_then(|known| {
                    let (same, _) = &known.objects[known.find(object.key()).ok()?];
                    (**same == object).then(|| Arc::clone(same))
                });
                let was_unread = held.unread.remove(&(namespace, name)).is_some();
                held.put(same.unwrap_or_else(|| Arc::new(object)), bytes) || was_unread
            }
            // Not one of those that are kept.
            Ok(None) => held.remove(&namespace, &name),
            Err(error) => {
                held.remove(&namespace, &name);
                held.unread.insert((namespace, name), format!("{error:#}"));
                true
            }
        };
        held.check(self.limits)?;
        Ok(is_other)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Named + PartialEq + Send + Sync> Table for Kept<T> {
    fn begin(&self) {
        self.lock().incoming = Held::default();
    }

    fn list(&self, object: Value) -> Result<(), Refusal> {
        let State { known, incoming, .. } = &mut *self.lock();
        self.take(object, incoming, Some(known)).map(drop)
    }

    fn end(&self) -> bool {
        let state = &mut *self.lock();
        let mut incoming = mem::take(&mut state.incoming);
        incoming.objects.shrink_to_fit();
        let known = mem::replace(&mut state.known, incoming);
        let is_same = known.objects == state.known.objects && known.unread == state.known.unread;
        let was_listed = mem::replace(&mut state.is_listed, true);
        if !is_same {
            state.list = None;
        }
        !is_same || !was_listed
    }

    fn put(&self, object: Value) -> Result<bool, Refusal> {
        let state = &mut *self.lock();
        let is_other = self.take(object, &mut state.known, None)?;
        if is_other {
            state.list = None;
        }
        Ok(is_other)
    }

    fn remove(&self, object: &Value) -> Result<bool, Refusal> {
        let (namespace, name) = name(object)?;
        let state = &mut *self.lock();
        let was_known = state.known.remove(&namespace, &name);
        if was_known {
            state.list = None;
        }
        Ok(was_known)
    }

    fn forget(&self) {
        let state = &mut *self.lock();
        *state = State { known: Held::default(), incoming: Held::default(), is_listed: false, list: None };
    }

    fn size(&self) -> Option<(usize, usize)> {
        let state = self.lock();
        state.is_listed.then_some((state.known.objects.len(), state.known.bytes))
    }
}

fn name(object: &Value) -> Result<(String, String), Refusal> {
    let text = |field| object.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = text("/metadata/name");
    if name.is_empty() { Err(Refusal::Nameless) } else { Ok((text("/metadata/namespace"), name)) }
}

/// The bytes of a value's JSON, or a few less.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| weight(item) + 1).sum::<usize>() + 2,
        Value::Object(members) => {
            members.iter().map(|(name, member)| name.len() + weight(member) + 4).sum::<usize>() + 2
        }
        _ => 4,
    }
}

/// A `CiliumCIDRGroup`.
#[derive(Debug, PartialEq)]
pub(super) struct CidrGroup {
    pub(super) name: String,
    pub(super) prefixes: Vec<IpNet>,
}

/// An event with the name that it has itself.
#[derive(Debug, PartialEq)]
pub(super) struct NamedEvent {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) event: ServiceEvent,
}

/// A `ConfigMap`, of which there is one.
#[derive(Debug, PartialEq)]
pub(super) struct OneMap(pub(super) BTreeMap<String, String>);

macro_rules! named {
    ($($kind:ty: $own:ident => $key:expr;)*) => {
        $(impl Named for $kind {
            fn key(&self) -> (&str, &str) {
                let $own = self;
                $key
            }
        })*
    };
}

named! {
    Service: own => (&own.namespace, &own.name);
    EndpointSlice: own => (&own.namespace, &own.name);
    Pod: own => (&own.namespace, &own.name);
    Namespace: own => ("", &own.name);
    Node: own => ("", &own.name);
    PolicyObject: own => (&own.namespace, &own.name);
    CidrGroup: own => ("", &own.name);
    NamedEvent: own => (&own.namespace, &own.name);
    OneMap: _own => ("", "");
}
