//! The cluster file: how a client finds the coordinators. FoundationDB's client waits for ever for coordinators that a file does not name,
//! so a file that cannot be one is refused here.

use std::path::Path;

use crate::error::OpenError;

/// Whether `path` can be read and looks like a cluster file.
pub fn check(path: &Path) -> Result<(), OpenError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| OpenError::NoClusterFile { path: path.to_owned(), reason: error.to_string() })?;
    parse(&text).map_err(|reason| OpenError::BadClusterFile { path: path.to_owned(), reason })
}

/// Lines that begin with `#` are comments; one other line is the cluster's connection string.
fn parse(text: &str) -> Result<(), String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = lines.next().ok_or("it is empty")?;
    if lines.next().is_some() {
        return Err("it has more than one line".into());
    }
    let (name, coordinators) = line.split_once('@').ok_or("there is no @ in it")?;
    let (description, id) = name.split_once(':').ok_or("there is no : before the @")?;
    let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !word(description) || !word(id) {
        return Err(format!("{name:?} is not description:id"));
    }
    for address in coordinators.split(',') {
        let plain = address.trim().trim_end_matches("(fromHostname)").trim_end_matches(":tls");
        let port =
            plain.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(_))) {
            return Err(format!("{address:?} is not host:port"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_foundationdb_writes_is_accepted() {
        for good in [
            "docker:docker@127.0.0.1:4500\n",
            "# DO NOT EDIT!\n# This file is auto-generated\nabc_1:Xy9@10.0.0.1:4500,10.0.0.2:4500:tls\n",
            "a:b@[::1]:4500",
            "a:b@fdb-1.example:4500(fromHostname)",
        ] {
            assert_eq!(parse(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_cannot_be_one_is_refused_with_the_reason() {
        for (bad, reason) in [
            ("", "empty"),
            ("# only a comment\n", "empty"),
            ("[store]\nkind = \"fdb\"\n", "more than one line"),
            ("127.0.0.1:4500", "no @"),
            ("a@127.0.0.1:4500", "no :"),
            ("a b:c@127.0.0.1:4500", "description:id"),
            ("a:b@127.0.0.1", "host:port"),
            ("a:b@127.0.0.1:4500,", "host:port"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(reason), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named_with_the_next_step() {
        let error = check(Path::new("/nowhere/fdb.cluster")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/fdb.cluster") && error.contains("store.cluster_file"), "{error}");
    }
}
