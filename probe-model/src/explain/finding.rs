//! Something that is wrong, or will be: what `plsprobe lint` lists and a trace adds to its answers.

use std::fmt;

use super::catalogue::{Code, Severity};
use crate::cilium::EndpointId;
use crate::world::kubernetes::Service;
use crate::world::{PolicyRef, World};

/// One thing that is wrong, with what proves it and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which cause.
    pub code: Code,
    /// How bad it is here; [`Code::severity`] unless the circumstances say otherwise.
    pub severity: Severity,
    /// Which object has to change.
    pub subject: Subject,
    /// What is wrong, in one sentence without its full stop.
    pub sentence: String,
    /// What proves it.
    pub evidence: Vec<Evidence>,
    /// What to do, in this order.
    pub remedy: Vec<Remedy>,
    /// What it assumes.
    pub assumptions: Vec<Code>,
}

impl Finding {
    /// A finding of the code's own severity, with neither evidence nor remedy yet.
    pub fn new(code: Code, subject: Subject, sentence: impl Into<String>) -> Self {
        Self {
            code,
            severity: code.severity(),
            subject,
            sentence: sentence.into(),
            evidence: Vec::new(),
            remedy: Vec::new(),
            assumptions: Vec::new(),
        }
    }

    /// Adds what proves it.
    pub fn because(mut self, source: Source, what: impl Into<String>) -> Self {
        self.evidence.push(Evidence { what: what.into(), source });
        self
    }

    /// Adds something to do.
    pub fn remedy(mut self, remedy: Remedy) -> Self {
        self.remedy.push(remedy);
        self
    }
}

/// The object that a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// What it is.
    pub kind: SubjectKind,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Where it is written, if it was read from a file.
    pub written: Option<FilePosition>,
}

impl Subject {
    /// A policy object.
    pub fn of_policy(policy: &PolicyRef) -> Self {
        let kind = match policy.kind.as_str() {
            "CiliumNetworkPolicy" => SubjectKind::CiliumNetworkPolicy,
            "CiliumClusterwideNetworkPolicy" => SubjectKind::CiliumClusterwideNetworkPolicy,
            _ => SubjectKind::NetworkPolicy,
        };
        Self { kind, namespace: policy.namespace.clone(), name: policy.name.clone(), written: None }
    }

    /// A service.
    pub fn of_service(service: &Service) -> Self {
        let namespace = Some(service.namespace.clone());
        Self { namespace, ..Self::named(SubjectKind::Service, &service.name) }
    }

    /// Something that has no namespace, or none that is known.
    pub fn named(kind: SubjectKind, name: &str) -> Self {
        Self { kind, namespace: None, name: name.to_owned(), written: None }
    }

    /// A pod of this node.
    pub fn of_endpoint(world: &World, id: EndpointId) -> Self {
        let pod = world.endpoints.get(&id).and_then(|endpoint| endpoint.pod.as_ref());
        let (namespace, name) = match pod {
            Some(pod) => (Some(pod.namespace.clone()), pod.name.clone()),
            None => (None, world.endpoint_name(id)),
        };
        Self { kind: SubjectKind::Pod, namespace, name, written: None }
    }

    /// This node.
    pub fn of_node() -> Self {
        Self::named(SubjectKind::Node, "this node")
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.text(), self.name),
            None => write!(f, "{} {}", self.kind.text(), self.name),
        }
    }
}

/// What kind of object a finding is about, as Kubernetes and Azure spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectKind {
    /// A Kubernetes service.
    Service,
    /// A pod.
    Pod,
    /// A node.
    Node,
    /// A NetworkPolicy.
    NetworkPolicy,
    /// A CiliumNetworkPolicy.
    CiliumNetworkPolicy,
    /// A `CiliumClusterwideNetworkPolicy`.
    CiliumClusterwideNetworkPolicy,
    /// Azure's Private Link service.
    PrivateLinkService,
    /// Azure's load balancer.
    LoadBalancer,
    /// The cluster as a whole.
    Cluster,
}

impl SubjectKind {
    /// As Kubernetes and Azure spell it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::PrivateLinkService => "PrivateLinkService",
            Self::LoadBalancer => "LoadBalancer",
            Self::Cluster => "Cluster",
        }
    }
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePosition {
    /// As the operator named it.
    pub path: String,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
}

/// One fact that proves a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The fact, as a clause.
    pub what: String,
    /// Where it was read.
    pub source: Source,
}

/// Where a fact comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Cilium's pinned maps.
    Maps,
    /// Cilium's agent.
    Agent,
    /// The Kubernetes API, or files with its objects.
    Kubernetes,
    /// Azure's API, the instance's metadata, or the node's Azure configuration.
    Azure,
    /// Packets and notifications that were seen.
    Packets,
    /// The node's netfilter rules and connection table.
    Netfilter,
}

impl Source {
    /// All sources.
    pub const ALL: [Self; 6] =
        [Self::Maps, Self::Agent, Self::Kubernetes, Self::Azure, Self::Packets, Self::Netfilter];

    /// In one word.
    pub fn text(self) -> &'static str {
        match self {
            Self::Maps => "maps",
            Self::Agent => "agent",
            Self::Kubernetes => "kubernetes",
            Self::Azure => "azure",
            Self::Packets => "packets",
            Self::Netfilter => "netfilter",
        }
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// In words, one sentence.
    Text(String),
    /// A command, as it is typed.
    Command(String),
    /// An object to apply, as YAML.
    Yaml(String),
}

impl Remedy {
    /// The words, the command or the YAML.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Command(text) | Self::Yaml(text) => text,
        }
    }
}
