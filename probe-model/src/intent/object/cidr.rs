//! `ipBlock`, `fromCIDR` and `fromCIDRSet`.

use ipnet::IpNet;

use super::{Node, Options, Peer, PeerKind, Reader};
use crate::intent::label::parse_prefix;
use crate::intent::path::Path;
use crate::intent::selector::Selector;

impl Reader<'_> {
    /// An element of `fromCIDR`: a prefix or an address.
    pub(super) fn cidr(&mut self, node: &Node<'_>) -> Option<Peer> {
        let Some(text) = node.text() else {
            self.wrong(node, "a prefix such as 10.0.0.0/8");
            return None;
        };
        let Some(cidr) = parse_prefix(text) else {
            self.refuse(if text.is_empty() {
                "IP must be specified".to_owned()
            } else {
                format!(
                    "unable to parse CIDR: {text:?} at `{}` is neither a prefix nor an address",
                    node.path
                )
            });
            return None;
        };
        Some(peer(node.path.clone(), cidr, Vec::new(), self.options))
    }

    /// An `ipBlock`, or an element of `fromCIDRSet`.
    pub(super) fn cidr_rule(&mut self, node: &Node<'_>) -> Option<Peer> {
        let cidr = self.prefix(node.field("cidr").as_ref(), &node.path)?;
        let mut except = Vec::new();
        for element in node.field("except").and_then(|list| list.list()).unwrap_or_default() {
            let inner = self.prefix(Some(&element), &element.path)?;
            if !cidr.contains(&inner.addr()) {
                self.refuse(format!("allow CIDR prefix {cidr} does not contain exclude CIDR prefix {inner}"));
                return None;
            }
            except.push(inner);
        }
        Some(peer(node.path.clone(), cidr, except, self.options))
    }

    /// A prefix with its length, as `cidr` and `except` must be.
    fn prefix(&mut self, node: Option<&Node<'_>>, at: &Path) -> Option<IpNet> {
        let text = node.and_then(Node::text).unwrap_or_default();
        let prefix = text.parse::<IpNet>().ok();
        if prefix.is_none() {
            self.refuse(format!(
                "Unable to parse CIDRRule {text:?}: `{at}` needs a prefix such as 10.0.0.0/8"
            ));
        }
        prefix.map(|prefix| prefix.trunc())
    }
}

fn peer(path: Path, cidr: IpNet, except: Vec<IpNet>, options: &Options) -> Peer {
    let remaining = without(cidr, &except);
    let selectors = remaining.iter().flat_map(|prefix| selectors(*prefix, options)).collect();
    Peer { path, kind: PeerKind::Cidr { cidr, except, remaining }, selectors }
}

/// The selector of a prefix; all addresses of a family are also the world without any prefix.
fn selectors(prefix: IpNet, options: &Options) -> Vec<Selector> {
    let family_is_on = if prefix.addr().is_ipv4() { options.ipv4 } else { options.ipv6 };
    let mut selectors = vec![Selector::cidr(prefix)];
    if prefix.prefix_len() == 0 && family_is_on {
        let world = match (options.ipv4 && options.ipv6, prefix) {
            (false, _) => "world",
            (true, IpNet::V4(_)) => "world-ipv4",
            (true, IpNet::V6(_)) => "world-ipv6",
        };
        selectors.push(Selector::reserved(world));
    }
    selectors
}

/// What is left of a prefix, as the largest prefixes that hold none of the excepted addresses.
pub(in crate::intent) fn without(cidr: IpNet, except: &[IpNet]) -> Vec<IpNet> {
    if except.iter().any(|gone| gone.contains(&cidr)) {
        return Vec::new();
    }
    let inside: Vec<_> = except.iter().copied().filter(|gone| cidr.contains(gone)).collect();
    if inside.is_empty() {
        return vec![cidr];
    }
    let halves = cidr.subnets(cidr.prefix_len() + 1).into_iter().flatten();
    halves.flat_map(|half| without(half, &inside)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(cidr: &str, except: &[&str]) -> Vec<String> {
        let except: Vec<_> = except.iter().map(|text| text.parse().unwrap()).collect();
        without(cidr.parse().unwrap(), &except).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_prefix_is_split_around_what_is_excepted() {
        assert_eq!(left("10.0.0.0/30", &["10.0.0.1/32"]), ["10.0.0.0/32", "10.0.0.2/31"]);
        assert_eq!(left("10.0.0.0/31", &["10.0.0.0/32", "10.0.0.1/32"]), Vec::<String>::new());
        assert_eq!(left("10.0.0.0/24", &["10.0.0.0/16"]), Vec::<String>::new());
        assert_eq!(left("10.0.0.0/24", &[]), ["10.0.0.0/24"]);
        assert_eq!(left("2001:db8::/127", &["2001:db8::1/128"]), ["2001:db8::/128"]);
    }
}
