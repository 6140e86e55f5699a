//! The node's texts: netfilter rules of both kinds, addresses and routes.

use std::cell::RefCell;

use probe_model::netfilter::Ruleset;
use probe_model::world::World;
use probe_user::sources::assemble::assemble;
use probe_user::sources::{folder, network_text, nft};

use crate::{container, whole};

pub(crate) const IPTABLES_SAVE: &str = "iptables-save.txt";
pub(crate) const IP: &str = "ip.txt";
pub(crate) const NFT: &str = "nft-ruleset.json";

thread_local! {
    /// A node on which netfilter decides: services are kube-proxy's.
    static NODE: RefCell<World> = RefCell::new({
        let scenario = fixtures::recording("cilium-1.14-tunnel-kubeproxy").join("none");
        assemble(&folder::read(&scenario).expect("a recording"))
    });
}

/// Texts as `container::texts` parts named as in a recording's `node/`; packets are walked through what they say.
pub fn node_text(data: &[u8]) {
    for (name, text) in container::texts(data) {
        let Ok(text) = str::from_utf8(text) else { continue };
        match name {
            IPTABLES_SAVE => {
                let Ok(rules) = Ruleset::parse(text) else { continue };
                ask(|world| world.netfilter = Some(rules));
            }
            NFT => {
                let Ok((rules, _)) = nft::ruleset(text, None) else { continue };
                ask(|world| world.netfilter = Some(rules));
            }
            IP => {
                let Ok(network) = network_text::parse(text) else { continue };
                ask(|world| (world.links, world.routes) = (Some(network.links), network.routes));
            }
            _ => {}
        }
    }
}

fn ask(change: impl FnOnce(&mut World)) {
    NODE.with_borrow_mut(|world| {
        let before = (world.netfilter.clone(), world.links.clone(), world.routes.clone());
        change(world);
        whole::ask(world);
        (world.netfilter, world.links, world.routes) = before;
    });
}
