//! One file of the repository, and what a rule needs to know of its text.

/// A text file, with its path from the root of the repository.
pub struct Source {
    pub path: String,
    pub text: String,
    /// The text of a Rust file with blanks for comments and what is in quotes; of another file all of it.
    pub code: String,
    /// The text with blanks for all but plain comments, those that aren't documentation.
    pub comments: String,
    /// The paths of two or more segments that a Rust file names, with their lines; imports are unfolded, and what is this
    /// crate's begins at its root. `use super::{a, b::c}` in `src/room/part.rs`: `crate::room::a`, `crate::room::b::c`.
    pub paths: Vec<(usize, Vec<String>)>,
    /// From which line on the code is compiled for tests only; a file's own tests come last in it.
    tests_from: Option<usize>,
}

impl Source {
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let (code, comments) = match path.rsplit_once('.') {
            Some((_, "rs")) => split_rust(&text),
            Some((_, "py" | "nix")) => (text.clone(), text.lines().map(hash_comment).collect::<Vec<_>>().join("\n")),
            _ => (text.clone(), String::new()),
        };
        let of_tests = path.split('/').any(|part| ["tests", "tests.rs", "benches", "examples"].contains(&part));
        let mut source = Self { path, text, code, comments, paths: Vec::new(), tests_from: of_tests.then_some(0) };
        if source.has_extension("rs") {
            source.paths = source.find_paths();
            let begin = numbered(&source.code).find(|(_, line)| line.trim() == "#[cfg(test)]");
            source.tests_from = source.tests_from.or(begin.map(|(line, _)| line));
        }
        source
    }

    pub fn has_extension(&self, wanted: &str) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, extension)| extension == wanted)
    }

    /// What a rule says of a line: `agent/src/node.rs:12: what`.
    pub fn at(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    pub fn is_test(&self, line: usize) -> bool {
        self.tests_from.is_some_and(|from| from <= line)
    }

    /// The rest of the path in this folder; none if it is elsewhere.
    pub fn below(&self, folder: &str) -> Option<&str> {
        self.path.strip_prefix(folder)
    }

    /// The tokens of the code with their lines: words, `::`, and single characters.
    pub fn tokens(&self) -> Vec<(usize, &str)> {
        let mut tokens = Vec::new();
        for (number, line) in numbered(&self.code) {
            let mut rest = line.trim_start();
            while let Some(first) = rest.chars().next() {
                let is_word = |c: char| c.is_alphanumeric() || c == '_';
                let length = match first {
                    _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                    ':' if rest.starts_with("::") => 2,
                    _ => first.len_utf8(),
                };
                tokens.push((number, &rest[..length]));
                rest = rest[length..].trim_start();
            }
        }
        tokens
    }

    fn find_paths(&self) -> Vec<(usize, Vec<String>)> {
        let tokens = self.tokens();
        let word = |at: usize| tokens.get(at).map_or("", |(_, token)| *token);
        let mut module = self.module();
        // How deep in braces each inline module begins.
        let (mut depth, mut inline) = (0_usize, Vec::new());
        let mut paths = Vec::new();
        let mut at = 0;
        while let Some((line, token)) = tokens.get(at).copied() {
            let mut found = Vec::new();
            match token {
                "mod" if word(at + 2) == "{" => {
                    module.push(word(at + 1).to_owned());
                    inline.push(depth);
                    at += 1;
                }
                "{" => depth += 1,
                "}" => {
                    depth = depth.saturating_sub(1);
                    if inline.pop_if(|began| *began == depth).is_some() {
                        module.pop();
                    }
                }
                "use" => {
                    at += 1;
                    unfold(&tokens, &mut at, Vec::new(), &mut found);
                }
                _ if word(at + 1) == "::" => {
                    let mut path = vec![token.to_owned()];
                    while word(at + 1) == "::" && word(at + 2).starts_with(|c: char| c.is_alphabetic() || c == '_') {
                        path.push(word(at + 2).to_owned());
                        at += 2;
                    }
                    found.push(path);
                }
                _ => {}
            }
            at += 1;
            let found = found.into_iter().map(|path| resolve(&module, path)).filter(|path| path.len() > 1);
            paths.extend(found.map(|path| (line, path)));
        }
        paths
    }

    /// Where in its crate's tree this file's module is, the crate's name left out.
    fn module(&self) -> Vec<String> {
        let path = self.path.rsplit_once("src/").map_or("", |(_, path)| path).trim_end_matches(".rs");
        let path = path.strip_suffix("/mod").unwrap_or(path);
        if path == "lib" || path == "main" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
    }
}

/// Lines, counted from 1.
pub fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn resolve(module: &[String], path: Vec<String>) -> Vec<String> {
    let ups = path.iter().take_while(|segment| *segment == "super").count();
    let relative = if path.first().is_some_and(|first| first == "self") { 1 } else { ups };
    if relative == 0 {
        return path;
    }
    let parents = &module[..module.len().saturating_sub(ups)];
    ["crate".to_owned()].into_iter().chain(parents.iter().cloned()).chain(path.into_iter().skip(relative)).collect()
}

/// The paths of an import, from behind `use` or within braces; ends at what closes it.
fn unfold(tokens: &[(usize, &str)], at: &mut usize, mut prefix: Vec<String>, paths: &mut Vec<Vec<String>>) {
    while let Some((_, token)) = tokens.get(*at).copied() {
        match token {
            "{" => {
                *at += 1;
                while !matches!(tokens.get(*at), None | Some((_, "}" | ";"))) {
                    unfold(tokens, at, prefix.clone(), paths);
                    *at += usize::from(matches!(tokens.get(*at), Some((_, ","))));
                }
                *at += 1;
                return;
            }
            "," | "}" | ";" => break,
            "as" => *at += 1,
            "::" | "*" => {}
            "self" if !prefix.is_empty() => {}
            segment => prefix.push(segment.to_owned()),
        }
        *at += 1;
    }
    paths.push(prefix);
}

/// Code with blanks for comments and what is in quotes; plain comments with blanks for all else.
fn split_rust(text: &str) -> (String, String) {
    let (mut code, mut comments) = (String::with_capacity(text.len()), String::with_capacity(text.len()));
    let mut rest = text;
    while !rest.is_empty() {
        let before = code.chars().next_back().unwrap_or(' ');
        let (length, is_code, is_comment) = lexeme(rest, before);
        for c in rest[..length].chars() {
            let blank = if c == '\n' { '\n' } else { ' ' };
            code.push(if is_code { c } else { blank });
            comments.push(if is_comment { c } else { blank });
        }
        rest = &rest[length..];
    }
    (code, comments)
}

/// How long the next piece is, whether it is code, and whether it is a plain comment.
fn lexeme(rest: &str, before: char) -> (usize, bool, bool) {
    let is_doc = rest.starts_with("///") || rest.starts_with("//!");
    let starts_word = !before.is_alphanumeric() && before != '_';
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), false, !is_doc);
    }
    if rest.starts_with("/*") {
        return (rest.find("*/").map_or(rest.len(), |end| end + 2), false, true);
    }
    let raw = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r').filter(|_| starts_word);
    if let Some((hashes, _)) = raw.and_then(|raw| raw.split_once('"')).filter(|(h, _)| h.chars().all(|c| c == '#')) {
        let begin = rest.find('"').expect("it was split there") + 1;
        let end = format!("\"{hashes}");
        return (rest[begin..].find(&end).map_or(rest.len(), |at| begin + at + end.len()), false, false);
    }
    match rest.as_bytes()[0] {
        b'"' => (quoted(rest, '"'), false, false),
        // A lifetime has no quote behind it.
        b'\'' if rest[1..].starts_with('\\') || rest[1..].chars().nth(1) == Some('\'') => {
            (quoted(rest, '\''), false, false)
        }
        _ => (rest.chars().next().map_or(1, char::len_utf8), true, false),
    }
}

/// The length of what begins with a quote, up to the same that isn't escaped.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// The comment of a Python or Nix line that has nothing else, as `// …`.
fn hash_comment(line: &str) -> String {
    line.trim_start().strip_prefix('#').map_or(String::new(), |comment| format!("//{comment}"))
}

#[test]
fn what_is_in_quotes_or_comments_is_not_code() {
    let source = Source::new(
        "a.rs",
        "let a = \"x\\\" // no\"; // why: b\n/* c */ let d = '\"'; let e: &'static str = r#\"f \" g\"#; /// doc\n",
    );
    let words: Vec<_> = source.tokens().into_iter().map(|(_, token)| token).filter(|token| token.len() > 2).collect();
    assert_eq!(words, ["let", "let", "let", "static", "str"]);
    assert_eq!(source.comments.split_whitespace().collect::<Vec<_>>(), ["//", "why:", "b", "/*", "c", "*/"]);
}

#[test]
fn what_no_compiler_would_take_has_an_end() {
    let source = Source::new("a.rs", "use b::{c; }\nuse d::{e");
    let paths: Vec<_> = source.paths.iter().map(|(_, path)| path.join("::")).collect();
    assert!(paths.contains(&"b::c".to_owned()) && paths.contains(&"d::e".to_owned()), "{paths:?}");
}

#[test]
fn imports_are_unfolded_and_relative_paths_resolved() {
    let source = Source::new(
        "agent/src/room/part.rs",
        "use std::{fs, io::{self, Read as _}};\nuse super::super::other::*;\nmod tests { use super::Inner; }\n\
         fn f() { self::here::g(); crate::far::h::<u8>() }",
    );
    let paths: Vec<_> = source.paths.iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect();
    let expected = [
        "1 std::fs",
        "1 std::io",
        "1 std::io::Read",
        "2 crate::other",
        "3 crate::room::part::Inner",
        "4 crate::room::part::here::g",
        "4 crate::far::h",
    ];
    assert_eq!(paths, expected);
}
