//! Everything known of one node at one time, decoded, with what is missing.

use std::net::IpAddr;

use ipnet::IpNet;

/// A fact that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What: a map's pin name, a REST path, a file.
    pub what: String,
    /// Why, as an error message.
    pub why: String,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Its own addresses with their prefix lengths, the primary one first.
    pub addresses: Vec<IpNet>,
}

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix; /0 for the default route.
    pub destination: IpNet,
    /// Next hop, if not on the link itself.
    pub via: Option<IpAddr>,
    /// Outgoing interface's name.
    pub dev: String,
    /// Preferred source address, if the route names one.
    pub src: Option<IpAddr>,
    /// Metric, 0 if none.
    pub metric: u32,
}
