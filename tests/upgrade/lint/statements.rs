//! The statements of a migration, as far as its linter has to read them.

/// Behind these words of PL/pgSQL another statement begins.
const OPENING: [&str; 4] = ["BEGIN", "THEN", "ELSE", "LOOP"];

/// A statement in capitals with single spaces, without comments and without what stands in quotes.
/// What a DO block does stands beside the others, and so does what a function puts together as it
/// runs (EXECUTE).
pub(super) fn statements(sql: &str) -> Vec<String> {
    let mut text = String::new();
    let mut rest = sql;
    while let Some(next) = rest.chars().next() {
        if rest.starts_with("--") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = rest.find("*/").map_or("", |end| &rest[end + 2..]);
        } else if next == '\'' {
            rest = rest[1..].find('\'').map_or("", |end| &rest[end + 2..]);
            text += "''";
        } else if let Some(tag) = dollar_quote(rest) {
            let inside = &rest[tag.len()..];
            let (body, behind) = inside.split_once(tag).unwrap_or((inside, ""));
            let current = text.rsplit(';').next().unwrap_or_default().trim().to_uppercase();
            // A function's body runs when it is called, a DO block's at once.
            let at_once = current == "DO" || current.starts_with("DO ");
            for one in body_statements(body) {
                if at_once || one.starts_with("EXECUTE ") {
                    text += &format!("; {one} ;");
                }
            }
            rest = behind;
        } else {
            text.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    text.split(';')
        .map(|one| one.split_whitespace().collect::<Vec<_>>().join(" ").to_uppercase())
        .filter(|one| !one.is_empty())
        .collect()
}

/// `$$` or `$tag$`, if the text begins with one.
fn dollar_quote(text: &str) -> Option<&str> {
    let (tag, _) = text.strip_prefix('$')?.split_once('$')?;
    let is_tag = tag.chars().all(|c| c.is_alphanumeric() || c == '_')
        && !tag.starts_with(|c: char| c.is_ascii_digit());
    is_tag.then(|| &text[..tag.len() + 2])
}

/// The statements of a body in PL/pgSQL.
fn body_statements(body: &str) -> Vec<String> {
    let mut found = Vec::new();
    for statement in statements(body) {
        let words: Vec<&str> = statement.split(' ').collect();
        let parts = words.split(|word| OPENING.contains(word));
        found.extend(parts.map(|words| words.join(" ")).filter(|part| !part.is_empty()));
    }
    found
}
