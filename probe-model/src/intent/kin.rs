//! Which identities of addresses are parts of which others.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::cluster::Cluster;
use super::label::Labels;
use crate::cilium::identity::Identity;

/// The identities of the world, in all its forms.
const WORLDS: [Identity; 3] = [Identity::WORLD, Identity::WORLD_IPV4, Identity::WORLD_IPV6];

/// The prefixes of all identities that have one, for finding those inside or around another quickly.
#[derive(Clone, Debug, Default)]
pub(super) struct Kin {
    identities: BTreeMap<IpNet, Vec<Identity>>,
    prefixes: BTreeMap<Identity, IpNet>,
}

/// The relatives of an identity among those of addresses; one of the same addresses is in both lists.
#[derive(Clone, Debug, Default)]
pub(super) struct Relatives {
    /// Those that hold all of its addresses of a family.
    pub(super) around: Vec<Identity>,
    /// Those of which it holds all addresses of a family.
    pub(super) inside: Vec<Identity>,
}

impl Kin {
    pub(super) fn new(cluster: &Cluster) -> Self {
        let mut kin = Self::default();
        for (identity, labels) in cluster.identities.iter().filter(|(identity, _)| identity.is_local_scope())
        {
            if let Some(prefix) = Labels::prefix(labels) {
                kin.identities.entry(prefix).or_default().push(*identity);
                kin.prefixes.insert(*identity, prefix);
            }
        }
        kin
    }

    /// The identities whose prefix lies inside this one, or is it.
    pub(super) fn inside(&self, prefix: IpNet) -> impl Iterator<Item = Identity> {
        let inside = self.identities.range(prefix..).take_while(move |(other, _)| prefix.contains(*other));
        inside.flat_map(|(_, identities)| identities.iter().copied())
    }

    /// The relatives of an identity: none of a pod's or a node's.
    pub(super) fn relatives(&self, identity: Identity) -> Relatives {
        let mut relatives = Relatives::default();
        let own = self.prefixes_of(identity);
        for prefix in &own {
            let around = std::iter::successors(Some(*prefix), IpNet::supernet);
            let around = around.filter_map(|prefix| self.identities.get(&prefix)).flatten();
            relatives.around.extend(around);
            relatives.inside.extend(self.inside(*prefix));
        }
        for world in WORLDS {
            let all = self.prefixes_of(world);
            if own.iter().any(|own| all.iter().any(|all| all.contains(own))) {
                relatives.around.push(world);
            }
            if own.iter().any(|own| all.iter().any(|all| own.contains(all))) {
                relatives.inside.push(world);
            }
        }
        relatives.around.retain(|other| *other != identity);
        relatives.inside.retain(|other| *other != identity);
        relatives
    }

    fn prefixes_of(&self, identity: Identity) -> Vec<IpNet> {
        let (v4, v6) = (IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default()));
        match identity {
            Identity::WORLD => vec![v4, v6],
            Identity::WORLD_IPV4 => vec![v4],
            Identity::WORLD_IPV6 => vec![v6],
            _ => self.prefixes.get(&identity).copied().into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relatives_of_prefixes_and_of_the_world() {
        let mut cluster = Cluster::default();
        let prefixes = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "11.0.0.0/8", "2001:db8::/32"];
        for (number, prefix) in (0x0100_0001..).zip(prefixes) {
            cluster.identities.insert(
                Identity(number),
                Labels::parse([format!("cidr:{prefix}").replace("::", "--").as_str()]),
            );
        }
        let kin = Kin::new(&cluster);
        let local =
            |numbers: &[u32]| numbers.iter().map(|number| Identity(0x0100_0000 + number)).collect::<Vec<_>>();
        let relatives = kin.relatives(Identity(0x0100_0002));
        assert_eq!(relatives.around, [local(&[1]), vec![Identity::WORLD, Identity::WORLD_IPV4]].concat());
        assert_eq!(relatives.inside, local(&[3]));
        let world = kin.relatives(Identity::WORLD_IPV4);
        assert_eq!(world.around, [Identity::WORLD]);
        assert_eq!(world.inside, [local(&[1, 2, 3, 4]), vec![Identity::WORLD]].concat());
        assert!(kin.relatives(Identity(50_001)).around.is_empty());
    }
}
