-- A file of a conversation's messages: what became of it, and what is needed to fetch it. Its key is the hash of the
-- reference that the message has, so that messages stay as programs of before know them. A row without `seq` is an upload
-- that no message has yet.
create table attachments (
  conversation_id uuid not null,
  id uuid not null default gen_random_uuid(), -- in links
  created_at timestamptz not null default clock_timestamp(),
  next_attempt_at timestamptz not null default clock_timestamp(),
  seq bigint,
  content_id uuid,
  attempts integer not null default 0,     -- fences results
  lost integer not null default 0,         -- how often it was taken since there was a result
  status text not null default 'waiting' check (status in ('waiting', 'stored', 'failed')),
  error text,
  key bytea not null,                      -- sha256 of `ref`
  told jsonb not null,                     -- as the message has it
  primary key (conversation_id, key)
);

create unique index attachments_id on attachments (id);

create index attachments_waiting on attachments (next_attempt_at) where status = 'waiting';

create index attachments_waiting_in on attachments (conversation_id, created_at) where status = 'waiting';

create index attachments_uploads on attachments (created_at) where seq is null;

create index attachments_uploads_in on attachments (conversation_id) where seq is null;

create index attachments_content on attachments (content_id) where content_id is not null;

-- What lies in object storage, once for each content, under a name made of the row's id: no name is ever used twice, so
-- that deleting one can't meet a file that was stored anew. `unused_since`: nothing refers to it (yet, or any more).
create table contents (
  id uuid primary key,
  created_at timestamptz not null default clock_timestamp(),
  unused_since timestamptz default clock_timestamp(),
  size bigint not null,                    -- in bytes
  width integer,                           -- of an image, in pixels
  height integer,
  has_thumbnail boolean not null default false,
  status text not null default 'writing' check (status in ('writing', 'stored', 'deleting')),
  mime_type text not null,                 -- as its bytes say
  sha256 bytea not null
);

create unique index contents_sha256 on contents (sha256) where status <> 'deleting';

create index contents_unused on contents (unused_since) where unused_since is not null;
