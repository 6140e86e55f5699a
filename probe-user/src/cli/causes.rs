//! `plsprobe causes`.

use std::io::Write as _;

use anyhow::Result;

use super::{Global, Outcome, Output};
use crate::causes;
use crate::render::causes as render;

/// `plsprobe causes`' flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A code that an answer had in brackets, as PLS-03, 3, hook-gap or DROP-155; without it, the list
    code: Option<String>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let mut out = std::io::stdout().lock();
    match (&args.code, global.output) {
        (None, Output::Text) => render::list(&causes::pages()?, &mut out)?,
        (None, Output::Json) => render::list_json(&causes::pages()?, &mut out)?,
        (Some(typed), output) => {
            let code = causes::code(typed)?;
            let page = causes::page(code)?;
            match output {
                Output::Text => render::page(code, &page, &mut out)?,
                Output::Json => render::page_json(code, &page, &mut out)?,
            }
        }
    }
    out.flush()?;
    Ok(Outcome::Allowed)
}
