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
