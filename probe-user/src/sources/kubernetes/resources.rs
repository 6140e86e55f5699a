//! What is asked of the API, what is kept of it, and what an answer lacks without it.

/// A list of the API.
pub(super) struct Resource {
    /// Its name here, in a snapshot, and as a missing fact.
    pub(super) name: &'static str,
    /// Where it is; of several the first that exists.
    pub(super) paths: &'static [&'static str],
    /// A query, beside those of pages.
    pub(super) query: &'static str,
    /// What is kept of each object.
    pub(super) keep: &'static str,
    /// Whether a server without it has none of it: types that Cilium brings.
    pub(super) is_optional: bool,
    /// Whether it is one object, not a list.
    pub(super) is_single: bool,
    /// Whether an agent watches it; else it is read anew from time to time, which is enough.
    pub(super) is_watched: bool,
    /// What whoever asks must be allowed, as RBAC says it.
    pub(super) right: &'static str,
    /// What an answer lacks without it.
    pub(super) cost: &'static str,
}

const METADATA: &str =
    "apiVersion kind metadata{name namespace labels creationTimestamp generation} spec specs";

const LIST: Resource = Resource {
    name: "",
    paths: &[],
    query: "",
    keep: "",
    is_optional: false,
    is_single: false,
    is_watched: true,
    right: "",
    cost: "",
};

/// Every list, the most wanted first.
pub(super) const RESOURCES: [Resource; 11] = [
    Resource {
        name: "services",
        paths: &["/api/v1/services"],
        keep: "metadata{name namespace uid annotations(service.beta.kubernetes.io/) ownerReferences{kind name}} \
               spec{type clusterIPs externalTrafficPolicy internalTrafficPolicy \
               ports{name protocol port targetPort nodePort appProtocol} selector loadBalancerSourceRanges \
               healthCheckNodePort allocateLoadBalancerNodePorts sessionAffinity ipFamilies loadBalancerClass} \
               status{loadBalancer{ingress{ip}}}",
        right: "list services",
        cost: "what a Service asks of Azure, its traffic policy and its target ports are not known",
        ..LIST
    },
    Resource {
        name: "pods",
        paths: &["/api/v1/pods"],
        keep: "metadata{name namespace labels} \
               spec{nodeName hostNetwork serviceAccountName containers{ports{name protocol containerPort}} initContainers{ports{name protocol containerPort} restartPolicy}} \
               status{phase podIPs{ip} conditions{type status}}",
        right: "list pods",
        cost: "pods of other nodes, named ports and which pods are on their node's network are not known",
        ..LIST
    },
    Resource {
        name: "networkpolicies",
        paths: &["/apis/networking.k8s.io/v1/networkpolicies"],
        keep: METADATA,
        right: "list networkpolicies.networking.k8s.io",
        cost: "NetworkPolicies are known as far as the agent shows their rules; why one does not match may not be told",
        ..LIST
    },
    Resource {
        name: "ciliumnetworkpolicies",
        paths: &["/apis/cilium.io/v2/ciliumnetworkpolicies"],
        keep: METADATA,
        is_optional: true,
        right: "list ciliumnetworkpolicies.cilium.io",
        cost: "CiliumNetworkPolicies are known as far as the agent shows their rules; why one does not match may not be told",
        ..LIST
    },
    Resource {
        name: "ciliumclusterwidenetworkpolicies",
        paths: &["/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies"],
        keep: METADATA,
        is_optional: true,
        right: "list ciliumclusterwidenetworkpolicies.cilium.io",
        cost: "CiliumClusterwideNetworkPolicies are known as far as the agent shows their rules; why one does not match may not be told",
        ..LIST
    },
    Resource {
        name: "ciliumcidrgroups",
        paths: &["/apis/cilium.io/v2/ciliumcidrgroups", "/apis/cilium.io/v2alpha1/ciliumcidrgroups"],
        keep: "metadata{name labels} spec{externalCIDRs}",
        is_optional: true,
        right: "list ciliumcidrgroups.cilium.io",
        cost: "prefixes of a CiliumCIDRGroup that a policy names are not known",
        ..LIST
    },
    Resource {
        name: "namespaces",
        paths: &["/api/v1/namespaces"],
        keep: "metadata{name labels}",
        right: "list namespaces",
        cost: "whether a `namespaceSelector` matches is not known",
        ..LIST
    },
    Resource {
        name: "nodes",
        paths: &["/api/v1/nodes"],
        keep: "metadata{name labels{node.kubernetes.io/exclude-from-external-load-balancers}} spec{podCIDR podCIDRs providerID} status{addresses{type address} conditions{type status}}",
        right: "list nodes",
        cost: "addresses of other nodes are known from the ipcache alone",
        ..LIST
    },
    Resource {
        name: "endpointslices",
        paths: &["/apis/discovery.k8s.io/v1/endpointslices"],
        keep: "metadata{name namespace labels{kubernetes.io/service-name}} addressType \
               endpoints{addresses conditions{ready serving terminating} nodeName targetRef{kind name}} \
               ports{name protocol port}",
        right: "list endpointslices.discovery.k8s.io",
        cost: "backends of a Service are known from the maps alone",
        ..LIST
    },
    Resource {
        name: "events",
        paths: &["/api/v1/events"],
        query: "fieldSelector=involvedObject.kind%3DService",
        keep: "involvedObject{kind namespace name} reason message lastTimestamp eventTime count series{count lastObservedTime}",
        is_watched: false,
        right: "list events",
        cost: "what the cloud provider said of a load balancer that could not be made is not known",
        ..LIST
    },
    Resource {
        name: "cilium-config",
        paths: &["/api/v1/namespaces/kube-system/configmaps/cilium-config"],
        keep: "data{kube-proxy-replacement routing-mode tunnel tunnel-protocol enable-endpoint-routes enable-host-legacy-routing ipam \
               enable-ipv4-masquerade enable-bpf-masquerade bpf-lb-mode bpf-lb-sock bpf-lb-source-range-all-types \
               enable-remote-node-identity policy-cidr-match-mode enable-policy policy-audit-mode enable-l7-proxy enable-hubble \
               enable-host-firewall enable-tcx enable-health-check-nodeport kube-proxy-replacement-healthz-bind-address \
               cluster-pool-ipv4-cidr cluster-name enable-ip-masq-agent monitor-aggregation}",
        is_single: true,
        is_watched: false,
        right: "get configmaps/cilium-config in kube-system",
        cost: "Cilium's options are known from the agent and the maps alone",
        ..LIST
    },
];
