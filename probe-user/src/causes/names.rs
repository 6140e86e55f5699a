//! Codes that an operator may have meant, and the words in capitals that the pages leave to be filled in.

use probe_model::explain::Code;

/// Codes named for what is unknown, at most.
const NEAREST: usize = 4;

/// What stands in the pages' commands and YAML for what only the operator knows.
pub const PLACEHOLDERS: [(&str, &str); 31] = [
    ("APP", "the pods' label"),
    ("CLIENT_IP", "an address that must not come in"),
    ("CLUSTER", "the AKS cluster"),
    ("CONN", "the connection's name, from the list of connections"),
    ("EP", "the endpoint's number, from `plsprobe dump endpoints`"),
    ("FILE", "the file with the policy"),
    ("FQDN", "the name that consumers use"),
    ("IMAGE", "the image"),
    ("LB_IP", "the load balancer's frontend address"),
    ("NAT_IP", "an address of the Private Link service"),
    ("NAT_SUBNET", "the Private Link service's subnet, as 10.224.5.0/24"),
    ("NIC_ID", "the resource id of the Private Link service's NIC"),
    ("NODEPOOL", "the new node pool's name"),
    ("NODEPORT", "the service's node port"),
    ("NODE_IP", "the node's address"),
    ("NS", "the namespace"),
    ("NSG", "the network security group"),
    ("PATH", "the path that answers 200"),
    ("PLS", "the Private Link service"),
    ("POD", "the pod"),
    ("POD_CIDR", "the pods' address range"),
    ("POD_IP", "the pod's address"),
    ("POLICY", "the policy object"),
    ("POOL", "the pool's name"),
    ("PORT", "the service's port"),
    ("RG", "the resource group"),
    ("SUBNET", "the name of the Private Link service's subnet"),
    ("SUBSCRIPTION", "the subscription's id"),
    ("SVC", "the service"),
    ("TARGETPORT", "the port that the pod listens on"),
    ("VNET", "the VNet's name"),
];

/// The placeholders that stand in blocks of code of `markdown`.
pub fn placeholders(markdown: &str) -> Vec<(&'static str, &'static str)> {
    let code: String = markdown.split("```").skip(1).step_by(2).collect();
    let words: Vec<_> = code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).collect();
    PLACEHOLDERS.into_iter().filter(|(name, _)| words.contains(name)).collect()
}

/// Codes that `typed` may have meant: those whose title has it, else those spelled nearly so.
pub fn find(typed: &str) -> Vec<Code> {
    let typed = typed.trim().to_lowercase();
    let is_word = typed.chars().count() >= 3;
    let titled = Code::ALL.iter().copied().filter(|code| code.title().to_lowercase().contains(&typed));
    let titled: Vec<_> = titled.filter(|_| is_word).take(NEAREST).collect();
    if !titled.is_empty() {
        return titled;
    }
    let mut near: Vec<_> =
        Code::ALL.iter().map(|code| (distance(&typed, &code.text().to_lowercase()), *code)).collect();
    near.sort_by_key(|(distance, _)| *distance);
    let limit = typed.chars().count().div_ceil(3);
    near.into_iter()
        .take_while(|(distance, _)| *distance <= limit)
        .map(|(_, code)| code)
        .take(NEAREST)
        .collect()
}

/// Levenshtein's distance: how many characters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<_> = b.chars().collect();
    let mut row: Vec<_> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
