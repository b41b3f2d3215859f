//! `catena serve`: one service in this process, from its configuration file to its clean stop.
