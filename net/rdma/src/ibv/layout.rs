//! Our records and constants against the header's, where there is a header and a C compiler.

use std::fmt::Write as _;
use std::process::Command;

use super::sys::{Record, context, queue, work};

/// Records that newer versions of the header make longer at their end: the library allocates them, is told our length, or is told by a
/// mask how much of them is filled in.
const GROWS: [&str; 3] = ["ibv_qp_ex", "ibv_port_attr", "ibv_qp_init_attr_ex"];

/// A C program that prints a line per question, in the order of [`answers`].
fn program(records: &[&Record], constants: &[(&str, u64)]) -> String {
    let mut source = String::from(
        "#include <infiniband/verbs.h>\n#include <stdio.h>\n#define SIZE(t, f) sizeof(((struct t *)0)->f)\nint main(void) {\n",
    );
    for Record { name, fields, .. } in records {
        // The only union.
        if *name == "ibv_gid" {
            source.push_str("#define ibv_gid_record union ibv_gid\n");
        } else {
            let _ = writeln!(source, "#define {name}_record struct {name}");
        }
        let _ = writeln!(
            source,
            "printf(\"{name} %zu %zu\\n\", sizeof({name}_record), _Alignof({name}_record));"
        );
        for field in *fields {
            let path = field.path;
            let _ = writeln!(
                source,
                "printf(\"{name}.{path} %zu %zu\\n\", (size_t)offsetof({name}_record, {path}), \
                 sizeof((({name}_record *)0)->{path}));"
            );
        }
    }
    for (name, _) in constants {
        let _ = writeln!(source, "printf(\"{name} %llu\\n\", (unsigned long long){name});");
    }
    source.push_str("return 0; }\n");
    source
}

fn numbers(line: &str, question: &str) -> Vec<usize> {
    let rest = line.strip_prefix(question).unwrap_or_else(|| panic!("`{line}` answers `{question}`"));
    rest.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

/// Compares; returns how many numbers were compared, and what differs.
fn compare(output: &str, records: &[&Record], constants: &[(&str, u64)]) -> (usize, Vec<String>) {
    let mut lines = output.lines();
    let (mut compared, mut different) = (0, Vec::new());
    let mut check = |what: String, ours: usize, header: usize| {
        compared += 1;
        if ours != header {
            different.push(format!("{what}: ours {ours}, the header's {header}"));
        }
    };
    for record in records {
        let name = record.name;
        let answer = numbers(lines.next().expect("a line per record"), name);
        let (size, align) = (answer[0], answer[1]);
        // This one grows at its beginning: places are counted from its end.
        let from_end = name == "verbs_context";
        if GROWS.contains(&name) || from_end {
            assert!(size >= record.size, "{name} is shorter than ours");
        } else {
            check(format!("size of {name}"), record.size, size);
        }
        check(format!("alignment of {name}"), record.align, align);
        for field in record.fields {
            let answer = numbers(lines.next().expect("a line per field"), &format!("{name}.{}", field.path));
            let what = format!("{name}.{}", field.path);
            if from_end {
                check(format!("{what} from the end"), record.size - field.offset, size - answer[0]);
            } else {
                check(format!("place of {what}"), field.offset, answer[0]);
            }
            if !field.group && !GROWS.contains(&field.path) {
                check(format!("size of {what}"), field.size, answer[1]);
            }
        }
    }
    for &(name, value) in constants {
        let answer = numbers(lines.next().expect("a line per constant"), name);
        check(name.to_owned(), value as usize, answer[0]);
    }
    assert_eq!(lines.next(), None);
    (compared, different)
}

#[test]
fn records_and_constants_are_those_of_the_header() {
    let records: Vec<&Record> =
        [context::RECORDS, queue::RECORDS, work::RECORDS].into_iter().flatten().collect();
    let constants = [context::CONSTANTS, queue::CONSTANTS, work::CONSTANTS].concat();
    let directory = std::env::temp_dir().join(format!("catena-verbs-layout-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (source, binary) = (directory.join("layout.c"), directory.join("layout"));

    std::fs::write(&source, "#include <infiniband/verbs.h>\nint main(void) { return 0; }\n").unwrap();
    let compile = || Command::new("cc").arg("-w").arg(&source).arg("-o").arg(&binary).output();
    // Only that no empty program compiles with the header is a reason not to compare.
    let probe = compile();
    if !probe.as_ref().is_ok_and(|output| output.status.success()) {
        let why = probe.map_or_else(
            |error| format!("cc: {error}"),
            |output| String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("cc fails").to_owned(),
        );
        println!("not compared with infiniband/verbs.h, which needs cc and libibverbs-dev: {why}");
        std::fs::remove_dir_all(&directory).unwrap();
        return;
    }

    std::fs::write(&source, program(&records, &constants)).unwrap();
    let compiled = compile().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output = Command::new(&binary).output().unwrap();
    assert!(output.status.success());
    std::fs::remove_dir_all(&directory).unwrap();
    let (compared, different) = compare(&String::from_utf8(output.stdout).unwrap(), &records, &constants);
    assert!(different.is_empty(), "{different:#?}");
    assert!(compared > 400, "only {compared} numbers were compared");
}

/// The comparison itself finds what it is for.
#[test]
fn a_record_that_differs_is_found() {
    let records: Vec<&Record> = work::RECORDS.iter().filter(|record| record.name == "ibv_sge").collect();
    let right = "ibv_sge 16 8\nibv_sge.addr 0 8\nibv_sge.length 8 4\nibv_sge.lkey 12 4\nX 3\n";
    assert_eq!(compare(right, &records, &[("X", 3)]), (9, vec![]));
    let (_, different) = compare(&right.replace("lkey 12 4", "lkey 16 8"), &records, &[("X", 4)]);
    assert_eq!(different.len(), 3, "{different:?}");
}
