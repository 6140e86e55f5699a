//! Pods, wherever they are: who knows which, and on which node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use probe_model::{
    cilium::EndpointId,
    world::{
        Endpoint, PodName, World,
        kubernetes::{Backend, EndpointSlice, Labels, Pod},
    },
};

/// A pod, and where it is.
#[derive(Clone, Debug)]
pub struct Place<'w> {
    /// Its name; `None` if nobody says it.
    pub pod: Option<PodName>,
    /// Its node, if the Kubernetes API says it.
    pub node: Option<&'w str>,
    /// Its addresses; on its node's network they are the node's.
    pub addresses: Vec<IpAddr>,
    /// Its endpoint, if it is one of this node.
    pub endpoint: Option<EndpointId>,
    /// Its labels by the API; `None` if the API does not say them.
    labels: Option<&'w Labels>,
    /// Its labels by Cilium's agent, each with its source.
    agent_labels: &'w [String],
}

impl Place<'_> {
    /// Its labels, each with Cilium's source for it; `None` if nobody says any.
    pub(super) fn labels(&self) -> Option<Vec<String>> {
        let by_api = self.labels.into_iter().flatten().map(|(key, value)| format!("k8s:{key}={value}"));
        let is_known = self.labels.is_some() || !self.agent_labels.is_empty();
        is_known.then(|| by_api.chain(self.agent_labels.iter().cloned()).collect())
    }

    /// The address to ask for it by, IPv4 first.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.iter().copied().min_by_key(IpAddr::is_ipv6)
    }
}

impl fmt::Display for Place<'_> {
    /// `default/pls-app-0 (ep/1157, 10.0.0.143)`, `default/pls-app-1 (10.0.2.9 on aks-2)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.pod, self.endpoint) {
            (Some(pod), _) => write!(f, "{pod} (")?,
            (None, Some(id)) => write!(f, "endpoint {id} (")?,
            (None, None) => f.write_str("no pod (")?,
        }
        match (self.endpoint, self.address()) {
            (Some(id), Some(address)) => write!(f, "ep/{id}, {address})"),
            (Some(id), None) => write!(f, "ep/{id})"),
            (None, Some(address)) => {
                write!(f, "{address} on {})", self.node.unwrap_or("a node that nobody names"))
            }
            (None, None) => f.write_str("without an address)"),
        }
    }
}

/// Every pod that is known, those of this node first: by the Kubernetes API, else by Cilium's agent, else by its maps. Of
/// the API's only those whose namespace and name are wanted: there may be very many.
pub(super) fn known<'w>(world: &'w World, is_wanted: &dyn Fn(&str, &str) -> bool) -> Vec<Place<'w>> {
    let api = &world.kubernetes;
    let by_name: BTreeMap<(&str, &str), &Pod> =
        api.pods.iter().flatten().map(|pod| ((pod.namespace.as_str(), pod.name.as_str()), pod)).collect();
    let own = world.endpoints.values().filter(|endpoint| !endpoint.is_host());
    let mut all: Vec<_> = own.map(|endpoint| of_endpoint(world, &by_name, endpoint)).collect();
    let mut seen: BTreeSet<(String, String)> = BTreeSet::new();
    seen.extend(all.iter().flat_map(|place| &place.pod).map(|pod| (pod.namespace.clone(), pod.name.clone())));
    let mut is_new = |namespace: &str, name: &str| {
        is_wanted(namespace, name) && seen.insert((namespace.to_owned(), name.to_owned()))
    };
    for pod in api.pods.iter().flatten() {
        if is_new(&pod.namespace, &pod.name) {
            all.push(of_pod(pod));
        }
    }
    for slice in api.endpoint_slices.iter().flatten() {
        for backend in &slice.endpoints {
            if backend.pod.as_ref().is_some_and(|name| is_new(&slice.namespace, name)) {
                all.push(of_backend(slice, backend));
            }
        }
    }
    all
}

fn of_endpoint<'w>(
    world: &'w World,
    by_name: &BTreeMap<(&str, &str), &'w Pod>,
    endpoint: &'w Endpoint,
) -> Place<'w> {
    let by_agent = endpoint.pod.as_ref();
    let pod = match by_agent {
        Some(pod) => by_name.get(&(pod.namespace.as_str(), pod.name.as_str())).copied(),
        None => endpoint.addresses.iter().find_map(|address| world.kubernetes.pod_at(*address)),
    };
    let name = |pod: &Pod| PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
    Place {
        pod: by_agent.cloned().or_else(|| pod.map(name)),
        node: pod.map(|pod| pod.node.as_str()),
        addresses: endpoint.addresses.clone(),
        endpoint: Some(endpoint.id),
        labels: pod.map(|pod| &pod.labels),
        agent_labels: &endpoint.labels,
    }
}

fn of_pod(pod: &Pod) -> Place<'_> {
    Place {
        pod: Some(PodName { namespace: pod.namespace.clone(), name: pod.name.clone() }),
        node: Some(pod.node.as_str()).filter(|node| !node.is_empty()),
        addresses: pod.addresses.clone(),
        endpoint: None,
        labels: Some(&pod.labels),
        agent_labels: &[],
    }
}

fn of_backend<'w>(slice: &EndpointSlice, backend: &'w Backend) -> Place<'w> {
    let name = backend.pod.as_ref();
    Place {
        pod: name.map(|name| PodName { namespace: slice.namespace.clone(), name: name.clone() }),
        node: backend.node.as_deref(),
        addresses: backend.addresses.clone(),
        endpoint: None,
        labels: None,
        agent_labels: &[],
    }
}

/// The backends of a service by the Kubernetes API, those without a pod too.
pub(super) fn backends<'w>(world: &'w World, namespace: &str, name: &str) -> Vec<Place<'w>> {
    let slices = world.kubernetes.endpoint_slices.iter().flatten();
    let slices = slices.filter(|slice| slice.namespace == namespace && slice.service == name);
    let found: Vec<_> = slices
        .flat_map(|slice| slice.endpoints.iter().map(move |backend| of_backend(slice, backend)))
        .collect();
    let names: BTreeSet<_> = found.iter().flat_map(|place| &place.pod).map(|pod| pod.name.as_str()).collect();
    let known = known(world, &|of, pod| of == namespace && names.contains(pod));
    let mut all: Vec<Place<'w>> = Vec::new();
    for place in &found {
        // A slice of each address family, and of each port that some pods have alone.
        if all
            .iter()
            .any(|own| own.addresses == place.addresses || (own.pod.is_some() && own.pod == place.pod))
        {
            continue;
        }
        let same = known.iter().find(|own| match (&own.pod, &place.pod) {
            (Some(own), Some(pod)) => own == pod,
            _ => own.addresses.iter().any(|address| place.addresses.contains(address)),
        });
        let node = place.node;
        all.push(match same {
            Some(same) => Place { node: same.node.or(node), ..same.clone() },
            None => place.clone(),
        });
    }
    all
}

/// The pod with this address, by whoever knows one.
pub fn place_of(world: &World, address: IpAddr) -> Option<Place<'_>> {
    let is_on_its_own = |place: &Place<'_>| {
        // One on its node's network shares the node's address, and is none of those that have it.
        place.endpoint.is_some() || world.kubernetes.node_at(address).is_none()
    };
    let by_pod = world.kubernetes.pods.iter().flatten().filter(|pod| pod.addresses.contains(&address));
    let by_slice = world.kubernetes.endpoint_slices.iter().flatten().flat_map(|slice| {
        let has_it = |backend: &&Backend| backend.addresses.contains(&address);
        let names = slice.endpoints.iter().filter(has_it).filter_map(|backend| backend.pod.as_deref());
        names.map(|name| (slice.namespace.as_str(), name))
    });
    let by_pod = by_pod.map(|pod| (pod.namespace.as_str(), pod.name.as_str()));
    let names: BTreeSet<_> = by_pod.chain(by_slice).collect();
    let known = known(world, &|namespace, name| names.contains(&(namespace, name)));
    known.into_iter().find(|place| place.addresses.contains(&address) && is_on_its_own(place))
}
