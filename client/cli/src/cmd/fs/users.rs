//! Names of users and groups, from this machine's `/etc/passwd` and `/etc/group`.

use std::collections::BTreeMap;

/// Names by number, and numbers by name.
pub struct Names {
    by_id: BTreeMap<u32, String>,
}

impl Names {
    /// This machine's users.
    pub fn users() -> Names {
        Names::read("/etc/passwd")
    }
    /// No names at all.
    #[cfg(test)]
    pub fn none() -> Names {
        Names { by_id: BTreeMap::new() }
    }
    /// This machine's groups.
    pub fn groups() -> Names {
        Names::read("/etc/group")
    }

    fn read(path: &str) -> Names {
        Names::parse(&std::fs::read_to_string(path).unwrap_or_default())
    }

    /// Both files have the name first and the number third.
    fn parse(text: &str) -> Names {
        let mut by_id = BTreeMap::new();
        for line in text.lines() {
            let mut fields = line.split(':');
            if let (Some(name), Some(Ok(id))) = (fields.next(), fields.nth(1).map(str::parse)) {
                by_id.entry(id).or_insert_with(|| name.to_owned());
            }
        }
        Names { by_id }
    }

    /// The name, or the number where there is none.
    pub fn name(&self, id: u32) -> String {
        self.by_id.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// The number of a name or of a number.
    pub fn id(&self, text: &str) -> Option<u32> {
        text.parse().ok().or_else(|| self.by_id.iter().find(|(_, name)| *name == text).map(|(id, _)| *id))
    }
}

/// `USER`, `USER:GROUP`, `:GROUP`.
pub fn parse_owner(text: &str, users: &Names, groups: &Names) -> Result<(Option<u32>, Option<u32>), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let find = |what, name: &str, names: &Names| match name {
        "" => Ok(None),
        name => names
            .id(name)
            .map(Some)
            .ok_or_else(|| format!("this machine knows no {what} `{name}`; a number always works")),
    };
    let owner = (find("user", user, users)?, find("group", group, groups)?);
    if owner == (None, None) {
        return Err(format!("`{text}` names neither a user nor a group; write USER, USER:GROUP or :GROUP"));
    }
    Ok(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_names_or_numbers() {
        let users = Names::parse("root:x:0:0:root:/root:/bin/sh\nalice:x:1000:100::/home/alice:/bin/sh\n");
        let groups = Names::parse("wheel:x:10:alice\n");
        assert_eq!(parse_owner("alice", &users, &groups), Ok((Some(1000), None)));
        assert_eq!(parse_owner("alice:wheel", &users, &groups), Ok((Some(1000), Some(10))));
        assert_eq!(parse_owner(":7", &users, &groups), Ok((None, Some(7))));
        assert!(parse_owner("mallory", &users, &groups).unwrap_err().contains("mallory"));
        assert!(parse_owner(":", &users, &groups).is_err());
        assert_eq!(users.name(1000), "alice");
        assert_eq!(users.name(1001), "1001");
    }
}
