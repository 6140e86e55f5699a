//! Several named parts in one input. The fuzzer may tear them apart as it likes: what is no part is passed over.

/// Begins the line that names a text part.
const MARK: &str = "=== ";

/// `=== NAME`, then the part's text up to the next such line.
pub(crate) fn texts(data: &[u8]) -> Vec<(&str, &[u8])> {
    let mut parts = Vec::new();
    let mut rest = data;
    while let Some((name, after)) = next_mark(rest) {
        let end = end_of_part(after);
        parts.push((name, &after[..end]));
        rest = &after[end..];
    }
    parts
}

/// The inverse of [`texts`].
pub(crate) fn join_texts<'a>(parts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut data = String::new();
    for (name, text) in parts {
        data.extend([MARK, name, "\n", text.trim_end_matches('\n'), "\n"]);
    }
    data.into_bytes()
}

fn next_mark(rest: &[u8]) -> Option<(&str, &[u8])> {
    let rest = rest.strip_prefix(MARK.as_bytes())?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    Some((str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]))
}

/// Where the next line begins that names a part.
fn end_of_part(text: &[u8]) -> usize {
    let begins = |at: usize| text[at..].starts_with(MARK.as_bytes()) && (at == 0 || text[at - 1] == b'\n');
    (0..text.len()).find(|at| begins(*at)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_as_they_were_joined() {
        let parts = [("maps/a.json", "[]\n"), ("node/ip.txt", "# ip addr\n1: lo\n"), ("empty", "\n")];
        let data = join_texts(parts);
        let found: Vec<_> =
            texts(&data).into_iter().map(|(name, text)| (name, str::from_utf8(text).unwrap())).collect();
        assert_eq!(found, parts);
    }

    #[test]
    fn what_is_no_part_is_passed_over() {
        assert_eq!(texts(b"junk"), []);
        assert_eq!(texts(b"=== a"), []);
        assert_eq!(texts(b"=== a\n=== b\nx"), [("a", &b""[..]), ("b", b"x")]);
    }
}
