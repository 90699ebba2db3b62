-- Objects in object storage that hold the messages, turns and deliveries of closed sessions; docs/operate/archive.md
-- tells the format. No id is ever used twice. `writing`: nobody knows whether the object is there. `partial`: it is there
-- and was read back, and holds more than `archived_sessions` names: it is being filled, or sessions left it. `stored`: it
-- holds just those. `deleting`: nothing names it any more, and an hour after `changed_at` the object goes.
create table archives (
  id uuid primary key,
  created_at timestamptz not null default clock_timestamp(),
  changed_at timestamptz not null default clock_timestamp(), -- the status
  size bigint,                             -- of the object, in bytes; null while it is being written
  messages bigint,                         -- in the object, as are the sessions
  sessions integer,
  status text not null default 'writing' check (status in ('writing', 'partial', 'stored', 'deleting')),
  sha256 bytea                             -- of the object
);

create index archives_unsettled on archives (created_at, id) where status <> 'stored';

-- The compressed blocks of an object; each can be read alone.
create table archive_blocks (
  archive_id uuid not null,
  block_start bigint not null,             -- in the object, in bytes, as is the size
  number integer not null,
  size integer not null,
  sha256 bytea not null,
  primary key (archive_id, number)
);

-- Where the messages of an archived session are: a row for each block that has some of it. The key of a session can
-- change (a conversation moves), in programs that know nothing of archives too; and no session goes while this names it.
create table archived_sessions (
  conversation_id uuid not null,
  session_id uuid not null,
  archive_id uuid not null,
  first_seq bigint not null,               -- 0, as is last_seq: turns or deliveries only
  last_seq bigint not null,
  block integer not null,
  messages integer not null,
  primary key (conversation_id, last_seq, session_id, archive_id, block),
  foreign key (conversation_id, session_id) references sessions (conversation_id, id) on update cascade
);

create index archived_sessions_archive on archived_sessions (archive_id);

-- For the search for what can be archived: nothing of it changes with a message, so that updates stay in their page.
create index sessions_closed on sessions (created_at, id) where status = 'closed';
