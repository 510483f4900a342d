//! `fanwire nodes`: who is in the cluster, as etcd knows it now.

use super::{EXIT_CONFIG, EXIT_FAILED, environment, print, setting};
use crate::cluster::{self, Member};
use crate::config;
use std::path::PathBuf;
use std::process::ExitCode;

const EXIT_CODES: &str = "\
Exit codes:
   0  the list is printed, be it empty
   1  etcd can't be reached
  78  the configuration names no etcd, or can't be used; stderr says why";

/// etcd, user and certificates are those of `[cluster]` in the configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Args {
    /// Configuration file [default: fanwire.toml of the working directory, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// cluster.etcd, separated by commas
    #[arg(long, value_name = "ADDRESS")]
    etcd: Option<String>,
    /// Any setting, repeatable, as `cluster.prefix=push`
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// One array of JSON, an object for each node
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: Args) -> ExitCode {
    let etcd = args.etcd.map(|etcd| ("cluster.etcd".to_owned(), etcd));
    let settings: Vec<_> = args.set.into_iter().chain(etcd).collect();
    let config = match config::load(args.config.as_deref(), environment(), &settings) {
        Ok(loaded) if loaded.config.cluster.has_members() => loaded.config,
        Ok(_) => {
            eprintln!("cluster.etcd is empty, so there is no cluster to ask for: give --etcd, or --config");
            return ExitCode::from(EXIT_CONFIG);
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let found = runtime.map_err(|e| e.to_string()).and_then(|r| r.block_on(cluster::nodes(&config.cluster)));
    match found {
        Ok(mut nodes) => {
            nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
            let text = if args.json {
                serde_json::to_string_pretty(&nodes).expect("text and numbers are JSON") + "\n"
            } else {
                table(&nodes)
            };
            print(&text)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// One line for each node, in columns as wide as they need.
fn table(nodes: &[Member]) -> String {
    let or_none = |text: &String| if text.is_empty() { "-".to_owned() } else { text.clone() };
    let row = |node: &Member| {
        [
            or_none(&node.name),
            node.id.clone(),
            node.role.clone(),
            if node.draining { "draining" } else { "serving" }.to_owned(),
            node.version.clone(),
            format!("{}/{}", node.load.connections, node.load.connections_max),
            node.load.publications.to_string(),
            or_none(&node.relay),
            or_none(&node.grpc),
            or_none(&node.subscribers.join(",")),
        ]
    };
    let head =
        ["NAME", "ID", "ROLE", "STATE", "VERSION", "CONNECTIONS", "PUBLICATIONS", "RELAY", "GRPC", "SUBSCRIBERS"]
            .map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(nodes.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    let line = |row: &[String; 10]| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let node = |name: &str| Member { name: name.into(), id: "7f".into(), role: "all".into(), ..Member::default() };
        let text = table(&[node("a"), node("much-longer")]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("NAME         ID  ROLE"), "{text}");
        assert!(lines[1].starts_with("a            7f  all"), "{text}");
        assert!(lines[2].starts_with("much-longer  7f  all"), "{text}");
        assert_eq!(table(&[]).lines().count(), 1);
    }
}
