//! What a secret looks like: by its name, and by itself.

/// Names under which text and numbers are secret, as they are without case and punctuation.
const CERTAIN: [&str; 8] =
    ["password", "passwd", "passphrase", "secret", "token", "credential", "privatekey", "connectionstring"];
/// Names under which text is secret.
const LIKELY: [&str; 8] =
    ["authorization", "bearer", "cookie", "psk", "pwd", "salt", "kvstoreopt", "kvstoreconfiguration"];
/// Names under which all text is left out: their owners put in what they like.
const FREE: [&str; 4] = ["annotations", "env", "environment", "envvars"];
/// Parameters of signed addresses (Azure's `sig`), which are too short to be looked for inside of names.
const PARAMETERS: [&str; 3] = ["sig", "signature", "pass"];
/// How well-known tokens begin. Sources: the documentation of GitHub, GitLab, Slack, AWS, Google, Stripe, Vault, npm.
const PREFIXES: [&str; 16] = [
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "AKIA",
    "ASIA",
    "AIza",
    "sk_live_",
    "hvs.",
    "hvb.",
    "npm_",
    "dckr_pat_",
];
/// Characters after such a prefix that make it a token.
const AFTER_PREFIX: usize = 12;
/// So many characters of base64 or hexadecimal digits in a row are more than a name: 128 bits.
const OPAQUE: usize = 32;

/// A name without case and punctuation.
fn normalized(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Whether whatever has this name is secret, numbers too.
pub(super) fn is_certain_name(name: &str) -> bool {
    let name = normalized(name);
    CERTAIN.iter().any(|word| name.contains(word))
}

/// Whether text with this name is secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    // A selector is a name in some answers, and may hold any word.
    if name.len() > 100 || name.contains(['{', ' ']) {
        return false;
    }
    let plain = normalized(name);
    let is_key = plain.len() > 3 && plain.ends_with("key");
    is_key
        || CERTAIN.iter().chain(&LIKELY).any(|word| plain.contains(word))
        || FREE.iter().chain(&PARAMETERS).any(|word| plain == *word)
}

/// Whether `value` is or holds a secret, whatever its name; the name tells ids from keys.
pub(super) fn is_secret(name: &str, value: &str) -> bool {
    value.contains("-----BEGIN ")
        || has_web_token(value)
        || has_known_token(value)
        || has_scheme(value)
        || has_user_info(value)
        || has_assignment(value)
        || (!is_id_name(name) && has_opaque(value))
}

/// Hexadecimal digits under such a name are an id, which is no secret.
fn is_id_name(name: &str) -> bool {
    let name = normalized(name);
    ["id", "uid", "hash", "digest", "revision", "image"].iter().any(|word| name.ends_with(word))
}

/// Runs of characters that `fits` takes.
fn runs(text: &str, fits: fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |c| !fits(c)).filter(|run| !run.is_empty())
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-".contains(c)
}

/// A JSON web token: three runs of base64, the first being `{"` in it.
fn has_web_token(text: &str) -> bool {
    runs(text, |c| is_token_char(c) || c == '.').any(|run| {
        let Some(begin) = run.find("eyJ") else { return false };
        run[begin..].split('.').filter(|part| part.len() >= 8).count() >= 2
    })
}

fn has_known_token(text: &str) -> bool {
    let is_long = |rest: &str| rest.chars().take_while(|c| is_token_char(*c)).count() >= AFTER_PREFIX;
    PREFIXES.iter().any(|prefix| {
        text.match_indices(prefix).any(|(begin, _)| {
            let is_begin = !text[..begin].ends_with(|c: char| c.is_ascii_alphanumeric());
            is_begin && is_long(&text[begin + prefix.len()..])
        })
    })
}

/// `Bearer …` or `Basic …`, as in a header.
fn has_scheme(text: &str) -> bool {
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let word = word.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        let is_scheme = ["bearer", "basic"].iter().any(|scheme| word.eq_ignore_ascii_case(scheme));
        if is_scheme && words.peek().is_some_and(|next| next.len() >= 6) {
            return true;
        }
    }
    false
}

/// `scheme://user:password@host`.
fn has_user_info(text: &str) -> bool {
    text.match_indices("://").any(|(at, _)| {
        let rest = &text[at + 3..];
        let authority = rest.split(|c: char| c == '/' || c.is_whitespace()).next().unwrap_or_default();
        authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    })
}

/// `--token=…`, `X-Api-Key: …`, `…;Password=…`, `?sig=…`: a secret's name, `=` or `:`, and something.
fn has_assignment(text: &str) -> bool {
    text.match_indices(['=', ':']).any(|(at, _)| {
        let before = text[..at].trim_end_matches(['"', '\'', ' ']);
        let begin = before
            .rfind(|c| !is_token_char(c))
            .map_or(0, |idx| idx + before[idx..].chars().next().map_or(1, char::len_utf8));
        let value = text[at + 1..].trim_start_matches([' ', '"', '\'']);
        !value.is_empty() && is_secret_name(&before[begin..])
    })
}

/// A long run of base64 that is no word, or of hexadecimal digits.
fn has_opaque(text: &str) -> bool {
    let has = |run: &str, of: fn(&char) -> bool| run.chars().any(|c| of(&c));
    let is_base64 = |run: &str| {
        run.len() >= OPAQUE
            && has(run, char::is_ascii_uppercase)
            && has(run, char::is_ascii_lowercase)
            && has(run, char::is_ascii_digit)
    };
    runs(text, |c| c.is_ascii_alphanumeric() || "+/_-=".contains(c)).any(is_base64)
        || runs(text, |c| c.is_ascii_hexdigit())
            .any(|run| run.len() >= OPAQUE && has(run, char::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets() {
        for name in [
            "password",
            "DB_PASSWORD",
            "kvstore-opt",
            "KVStoreOpt",
            "kvStoreConfiguration",
            "clientSecret",
            "api-token",
            "X-Api-Key",
            "ipsec-key",
            "hubbleTLSPrivateKey",
            "annotations",
            "env",
            "Authorization",
            "Set-Cookie",
            "psk",
            "AccountKey",
            "sig",
            "ConnectionString",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in
            ["key", "keys", "name", "monkeys", "RoutingMode", "environmental", "IPSecKeyFile", "design", ""]
        {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn shapes_of_secrets() {
        for value in [
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
            "token is ghp_0123456789abcdefghij",
            "AKIAIOSFODNN7EXAMPLE",
            "Bearer abcdef123",
            "authorization: basic dXNlcjpwYXNz",
            "https://user:pa55@etcd.example:2379",
            "--password=x",
            "X-Api-Key: 7",
            "Server=db;Password=x;",
            "https://a.blob.core.windows.net/c?sv=2022&sig=abc%3D",
            "{'token': 'x'",
            "3 rfc4106(gcm(aes)) 44434241343332312423222114131211f4f3f2f1 128",
            "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXM5Cg==",
            "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
        ] {
            assert!(is_secret("x", value), "{value}");
        }
        for value in [
            "",
            "default/token-service-7d9c5bd5f4-x2v8q",
            "k8s:app=pls-app",
            "10.0.0.1:2379",
            "http://127.0.0.1:2379",
            "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=default",
            "é: ü=ö",
            "1.14.0-dev (v1.14.0-dev-r0)",
            "node.cilium.io/agent-not-ready",
            "basic",
            "fd00::1/64",
            "cilium-controller-of-the-endpoint-regeneration-of-everything",
            "/var/run/cilium/state/globals",
        ] {
            assert!(!is_secret("x", value), "{value}");
        }
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert!(is_secret("x", id) && !is_secret("container-id", id));
    }
}
