//! What is known of Private Link: NAT IPs, and consumers' private endpoints.

use anyhow::{Result, bail};
use ipnet::IpNet;
use probe_model::world::{World, nat::nat_sources};
use serde_json::json;

use super::{Dump, headings};

/// NAT IPs, who says so and how sure that is; and where two who say so contradict each other.
///
/// # Errors
///
/// If nobody says any.
pub fn nat_ips(world: &World) -> Result<Dump> {
    let known = nat_sources(world);
    if known.sources.is_empty() {
        bail!("no NAT IP of Private Link is known{}; give each by `--pls-nat-ip IP`", unasked(world));
    }
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["NAT IP", "CONFIDENCE", "FROM"])];
    for source in &known.sources {
        let (text, from) = (address_text(&source.prefix), clean(&source.origin.to_string()));
        let confidence = source.confidence().to_string();
        dump.json.push(json!({
            "schema": "plsprobe.nat-ip/1", "prefix": source.prefix.to_string(), "confidence": confidence, "from": from,
        }));
        rows.push(vec![text, confidence, from]);
    }
    dump.table(&rows);
    for disagreement in known.disagreements.iter().chain(&world.disagreements) {
        let text = clean(&disagreement.to_string());
        dump.line(&format!("disagreement: {text}"));
        dump.json.push(json!({ "schema": "plsprobe.disagreement/1", "text": text }));
    }
    Ok(dump)
}

/// Consumers' private endpoints: their service, the link identifier of their PROXY protocol header, and whether traffic
/// passes.
///
/// # Errors
///
/// If Azure did not say.
pub fn private_endpoints(world: &World) -> Result<Dump> {
    let Some(services) = &world.private_link.services else {
        let what = "azure/private-link-services";
        let missing = world.missing(what).or_else(|| world.missing("azure"));
        match missing {
            Some(missing) => bail!("failed to read {missing}"),
            None => bail!("Azure was not asked for Private Link services; ask it by `--azure`"),
        }
    };
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["SERVICE", "CONNECTION", "LINK", "STATE", "PRIVATE ENDPOINT"])];
    for (service, own) in
        services.iter().flat_map(|service| service.connections.iter().map(move |own| (service, own)))
    {
        let link = own.link_id.map_or_else(|| "-".to_owned(), |link| link.to_string());
        let endpoint = own.endpoint.as_ref().map_or("-", |id| id.0.as_str());
        dump.json.push(json!({
            "schema": "plsprobe.private-endpoint/1", "service": clean(&service.name), "connection": clean(&own.name),
            "linkIdentifier": own.link_id, "state": clean(&own.state.to_string()), "description": clean(&own.description),
            "privateEndpoint": own.endpoint.as_ref().map(|id| clean(&id.0)),
        }));
        rows.push(vec![
            clean(&service.name),
            clean(&own.name),
            link,
            clean(&own.state.to_string()),
            clean(endpoint),
        ]);
    }
    dump.table(&rows);
    Ok(dump)
}

/// Foreign text as it may be printed.
fn clean(text: &str) -> String {
    crate::render::clean(text).into_owned()
}

fn address_text(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

/// Who could have said more.
fn unasked(world: &World) -> String {
    let asked =
        |asked: &Option<String>, missing: &str, name: &str, flag: &str| match (asked, world.missing(missing))
        {
            (_, Some(missing)) => Some(format!("{name}: {}", missing.why)),
            (None, None) => Some(format!("{name} was not asked ({flag})")),
            (Some(_), None) => None,
        };
    let azure = asked(&world.private_link.asked, "azure", "Azure", "`--azure`");
    let kubernetes =
        asked(&world.kubernetes.asked, "kubernetes", "the Kubernetes API", "`--kubeconfig FILE`");
    let all: Vec<_> = azure.into_iter().chain(kubernetes).collect();
    if all.is_empty() { String::new() } else { format!(": {}", all.join("; ")) }
}
