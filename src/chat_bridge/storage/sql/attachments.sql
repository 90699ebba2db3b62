-- name: take_attachments
-- Take files that are due to be fetched, of these accounts ($2, $3); nobody else takes them for $4. Those of accounts that
-- nobody serves are passed over; they are few (`abandon_attachments`).
-- What is due is found by now(): unlike clock_timestamp() it is a limit for an index.
with ours as materialized (
  select a.conversation_id, a.key, s.platform, s.account, s.platform_conversation_id, s.thread
  from attachments a
  cross join lateral (
    select s.platform, s.account, s.platform_conversation_id, s.thread
    from sessions s
    where s.conversation_id = a.conversation_id
    limit 1
  ) s
  where a.status = 'waiting' and a.next_attempt_at <= now()
    and exists (
      select from unnest($2::text[], $3::text[]) as mine (platform, account)
      where mine.platform = s.platform and mine.account = s.account
    )
  order by a.next_attempt_at
  limit $1
  for update of a skip locked
)
update attachments a
set attempts = a.attempts + 1, lost = a.lost + 1, next_attempt_at = clock_timestamp() + $4::interval
from ours o
where a.conversation_id = o.conversation_id and a.key = o.key
returning a.conversation_id, a.id, a.seq, a.attempts, a.lost, a.told, a.created_at, o.platform, o.account,
  o.platform_conversation_id, o.thread;

-- name: take_attachments_in
-- The same for one conversation ($2), whoever serves it.
with due as materialized (
  select a.conversation_id, a.key
  from attachments a
  where a.conversation_id = $2 and a.status = 'waiting' and a.next_attempt_at <= clock_timestamp()
  order by a.created_at, a.seq
  limit $1
  for update skip locked
)
update attachments a
set attempts = a.attempts + 1, lost = a.lost + 1, next_attempt_at = clock_timestamp() + $3::interval
from due d
cross join lateral (
  select s.platform, s.account, s.platform_conversation_id, s.thread
  from sessions s
  where s.conversation_id = d.conversation_id
  limit 1
) s
where a.conversation_id = d.conversation_id and a.key = d.key
returning a.conversation_id, a.id, a.seq, a.attempts, a.lost, a.told, a.created_at, s.platform, s.account,
  s.platform_conversation_id, s.thread;

-- name: abandon_attachments
-- Files that nobody has fetched for two days: their account is not served any more.
update attachments a
set status = 'failed', error = 'nobody fetched it in time'
where (a.conversation_id, a.key) in (
  select o.conversation_id, o.key
  from attachments o
  where o.status = 'waiting' and o.next_attempt_at < now() - interval '1 day'
    and o.created_at < now() - interval '2 days'
  order by o.next_attempt_at
  limit $1
  for update skip locked
)
returning a.id;

-- name: renew_attachment
-- Who took a file is still fetching it. Not returned: somebody else has it by now, or it needs none any more.
update attachments
set next_attempt_at = clock_timestamp() + $4::interval
where conversation_id = $1 and id = $2 and attempts = $3 and status = 'waiting'
returning id;

-- name: attachment_failed
-- A file can't be had: for now ($5 seconds), or for good (null). Only who tried last may say so.
update attachments
set error = $4, lost = 0, status = case when $5::double precision is null then 'failed' else 'waiting' end,
  next_attempt_at = clock_timestamp() + make_interval(secs => coalesce($5, 0))
where conversation_id = $1 and id = $2 and attempts = $3 and status = 'waiting'
returning id;

-- name: find_content
-- What is stored already under this hash; from now on it is used.
update contents
set unused_since = clock_timestamp()
where sha256 = $1 and status <> 'deleting'
returning id, status, size, mime_type, width, height, has_thumbnail;

-- name: begin_content
-- A content that will be written. Written twice at once, it is the same bytes under the same name.
insert into contents as c (id, sha256, size, mime_type, width, height, has_thumbnail)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (sha256) where status <> 'deleting' do update set
  unused_since = clock_timestamp(),
  -- who was first may have died, and its picture with it
  width = case when c.status = 'writing' then excluded.width else c.width end,
  height = case when c.status = 'writing' then excluded.height else c.height end,
  has_thumbnail = case when c.status = 'writing' then excluded.has_thumbnail else c.has_thumbnail end
returning id, status, size, mime_type, width, height, has_thumbnail;

-- name: attachment_stored
-- A file's content is written. Not returned: the content is being deleted, or the attachment is gone or failed.
with mine as materialized (
  select a.conversation_id, a.key
  from attachments a
  where a.conversation_id = $1 and a.id = $2 and a.status = 'waiting'
  for update
), content as (
  update contents c
  set status = 'stored', unused_since = null
  from mine
  where c.id = $3 and c.status <> 'deleting'
  returning c.id
)
update attachments a
set status = 'stored', content_id = c.id, error = null
from content c, mine
where a.conversation_id = mine.conversation_id and a.key = mine.key
returning a.id;

-- name: add_upload
-- A file that somebody uploads, before the message that will have it.
insert into attachments (conversation_id, id, key, told, next_attempt_at)
values ($1, $2, $3, $4, 'infinity');

-- name: drop_upload
-- An upload that did not come in whole.
delete from attachments where conversation_id = $1 and id = $2 and seq is null and status = 'waiting' returning id;

-- name: forget_old_uploads
-- Uploads of a conversation that no message has, and that are too many with what came after them: the newest $3 stay, of
-- $4 bytes together. What is coming in stays, and counts with what its sender told of its size, or with $2.
with unsent as materialized (
  select a.key, count(*) over newest as files, sum(coalesce(c.size, (a.told ->> 'size')::bigint, $2)) over newest as bytes
  from attachments a
  left join contents c on c.id = a.content_id
  where a.conversation_id = $1 and a.seq is null
  window newest as (order by a.created_at desc, a.key)
), old as materialized (
  select a.conversation_id, a.key
  from unsent u
  join attachments a on a.conversation_id = $1 and a.key = u.key
  where (u.files > $3 or u.bytes > $4) and a.seq is null and a.status = 'stored'
  for update of a skip locked
), gone as (
  delete from attachments a
  using old o
  where a.conversation_id = o.conversation_id and a.key = o.key
  returning a.content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select g.content_id from gone g) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
)
select count(*) as forgotten from gone;

-- name: forget_upload
-- An upload that no message has and none will. Not returned: there is none, or a message has it.
with gone as (
  delete from attachments where conversation_id = $1 and id = $2 and seq is null and status = 'stored'
  returning id, content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select g.content_id from gone g) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
)
select id from gone;

-- name: attachments_of
-- What became of some files of a conversation.
select a.id, a.key, a.seq, a.status, a.error, a.told, a.next_attempt_at, c.id as content_id, c.size, c.mime_type,
  c.width, c.height, c.has_thumbnail
from unnest($2::bytea[]) as i (key)
cross join lateral (
  select *
  from attachments f
  where f.conversation_id = $1 and f.key = i.key
  limit 1 -- or the whole conversation may be read, and sorted, beside the keys
) a
left join contents c on c.id = a.content_id;

-- name: find_attachment
-- One file, by its id alone.
select a.conversation_id, a.id, a.seq, a.status, a.error, a.told, a.next_attempt_at, c.id as content_id, c.size,
  c.mime_type, c.width, c.height, c.has_thumbnail
from attachments a
left join contents c on c.id = a.content_id
where a.id = $1;

-- name: expire_uploads
-- Uploads that no message took within a day; their contents are unused then, unless others have them.
with old as materialized (
  select a.conversation_id, a.key
  from attachments a
  where a.seq is null and a.created_at < now() - interval '1 day'
  order by a.created_at
  limit $1
  for update skip locked
), gone as (
  delete from attachments a
  using old o
  where a.conversation_id = o.conversation_id and a.key = o.key
  returning a.content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select g.content_id from gone g) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
)
select count(*) as expired from gone;

-- name: doom_contents
-- Contents that nothing has used for an hour, to be deleted; those that were begun to be deleted before, too. Each comes
-- again in an hour, so that one whose object can't be deleted does not keep others from their turn.
with unused as materialized (
  select c.id, exists (select from attachments a where a.content_id = c.id) as used
  from contents c
  where c.unused_since < now() - interval '1 hour'
  order by c.unused_since
  limit $1
  for update of c skip locked
)
update contents c
set status = case when u.used then c.status else 'deleting' end,
  unused_since = case when u.used then null else clock_timestamp() end
from unused u
where c.id = u.id
returning c.id, c.status;

-- name: content_deleted
-- The objects of these contents are gone.
delete from contents where id = any($1::uuid[]) and status = 'deleting' returning id;
