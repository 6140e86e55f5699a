//! The test world: namespaces in the shape of the seed article and a stand-in for Cilium. Never shipped.
