//! The golden vectors: answers of the datapath's own function.
use std::str::FromStr;

use anyhow::{Context as _, Result};

use crate::case::{Entry, Layout};
use crate::slot::Query;

const VECTORS: &str = include_str!("../../../fixtures/policy-vectors.tsv");

/// A policy map, a packet, and what the datapath says of it.
pub(crate) struct Vector {
    /// As it stands in the file.
    pub(crate) line: &'static str,
    pub(crate) entries: Vec<Entry>,
    pub(crate) query: Query,
    pub(crate) result: i32,
    pub(crate) match_type: u8,
    pub(crate) auth_type: u8,
    pub(crate) proxy_port: u16,
}

/// The vectors of a layout's group.
pub(crate) fn of(layout: Layout) -> Result<Vec<Vector>> {
    let group = layout.group().0;
    let lines = VECTORS.lines().filter(|line| line.starts_with(&format!("{group}\t")));
    lines.map(|line| Vector::parse(line).with_context(|| line.to_owned())).collect()
}

impl Vector {
    fn parse(line: &'static str) -> Result<Self> {
        let fields: Vec<_> = line.split('\t').collect();
        let entries = fields[2].split(';').filter(|text| *text != "-").zip(1..).map(entry);
        let query = Query {
            identity: number(fields[3])?,
            protocol: number(fields[4])?,
            port: number(fields[5])?,
            ..Query::default()
        };
        Ok(Self {
            line,
            entries: entries.collect::<Result<_>>()?,
            query,
            result: number(fields[6])?,
            match_type: number(fields[7])?,
            auth_type: number(fields[8])?,
            proxy_port: number(fields[9])?,
        })
    }
}

/// `id/plen/proto/port/deny/proxy_port/auth/explicit_auth/x`.
fn entry((text, tag): (&str, u32)) -> Result<Entry> {
    let fields: Vec<_> = text.split('/').collect();
    Ok(Entry {
        identity: number(fields[0])?,
        egress: false,
        plen: number(fields[1])?,
        protocol: number(fields[2])?,
        port: number(fields[3])?,
        deny: fields[4] == "1",
        proxy_port: number(fields[5])?,
        auth_type: number(fields[6])?,
        explicit_auth: fields[7] == "1",
        rank: number(fields[8])?,
        tag,
    })
}

fn number<T: FromStr>(text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("`{text}` is not a number"))
}
