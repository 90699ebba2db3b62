-- name: begin_erasure
-- Note what is to be erased, before anything is.
insert into erasures (id, kind, target) values ($1, $2, $3)
on conflict (id) do nothing
returning id, created_at, finished_at, kind, target, receipt;

-- name: erasure
-- One erasure.
select id, created_at, finished_at, kind, target, receipt from erasures where id = $1;

-- name: unfinished_erasures
-- Those that something is left to do for, the oldest first.
select id, created_at, finished_at, kind, target, receipt
from erasures
where finished_at is null
order by created_at;

-- name: known_erasures
-- Which of these there are.
select id from erasures where id = any ($1::uuid[]);

-- name: note_erasure
-- Add to the counts of a receipt.
update erasures
set receipt = receipt || jsonb_build_object(
  'sessions', coalesce((receipt ->> 'sessions')::bigint, 0) + $2,
  'messages', coalesce((receipt ->> 'messages')::bigint, 0) + $3,
  'files', coalesce((receipt ->> 'files')::bigint, 0) + $4,
  'people', coalesce((receipt ->> 'people')::bigint, 0) + $5,
  'threads', coalesce((receipt ->> 'threads')::bigint, 0) + $6
)
where id = $1
returning id;

-- name: aim_erasure
-- What is left to do of an erasure, and what could not be reached so far; with nothing left it is finished.
update erasures
set target = $2, receipt = (receipt - 'not_reached') || $3, finished_at = case when $2::jsonb is null then clock_timestamp() end
where id = $1
returning id;

-- name: sessions_after
-- A page of sessions in the order of their keys: the conversations of a platform ($4) and an account ($5, null: any), and
-- where the page ends.
with page as materialized (
  select conversation_id, id, platform, account
  from sessions
  where (conversation_id, id) > ($1, $2)
  order by conversation_id, id
  limit $3
)
select p.conversation_id, p.id, p.platform = $4 and ($5::text is null or p.account = $5) as wanted
from page p
where (p.platform = $4 and ($5::text is null or p.account = $5))
  or (p.conversation_id, p.id) = (select e.conversation_id, e.id from page e order by e.conversation_id desc, e.id desc limit 1)
order by p.conversation_id, p.id;

-- name: wrote_in
-- In which sessions of these conversations ($1) a person ($2) wrote before a moment ($3), and whether others wrote there too.
select m.conversation_id, m.session_id, bool_or(m.sender_id <> $2 and m.content_type <> 'event') as others
from messages m
where m.conversation_id = any ($1::uuid[]) and m.direction = 'inbound'
group by m.conversation_id, m.session_id
having bool_or(m.sender_id = $2 and m.created_at < $3);

-- name: sessions_with_person
-- Sessions of these conversations ($1) that a person ($2) began before a moment ($4), and others of them ($3).
select s.conversation_id, s.id, s.platform, s.account, s.platform_conversation_id, s.thread, s.user_id,
  s.metadata ->> 'resource' as resource, s.user_id = $2 as begun, s.status = 'archived' as archived,
  (
    select m.metadata ? 'group'
    from messages m
    where m.conversation_id = s.conversation_id and m.direction = 'inbound'
    order by m.seq
    limit 1
  ) as is_group,
  exists (select from holds h where h.conversation_id = s.conversation_id) as held
from sessions s
where s.conversation_id = any ($1::uuid[]) and ((s.user_id = $2 and s.created_at < $4) or s.id = any ($3::uuid[]))
order by s.conversation_id, s.id;

-- name: sessions_of_conversation
-- All sessions of a conversation that began before a moment ($3), those too that it had under an id of before; or ($2) one.
select s.conversation_id, s.id, s.platform, s.account, s.platform_conversation_id, s.thread, s.user_id,
  s.metadata ->> 'resource' as resource, true as begun, s.status = 'archived' as archived,
  (
    select m.metadata ? 'group'
    from messages m
    where m.conversation_id = s.conversation_id and m.direction = 'inbound'
    order by m.seq
    limit 1
  ) as is_group,
  exists (select from holds h where h.conversation_id = s.conversation_id) as held
from (
  select distinct platform, account, platform_conversation_id, thread from sessions where conversation_id = $1
) c
join sessions s on s.platform = c.platform and s.platform_conversation_id = c.platform_conversation_id
  and s.account = c.account and s.thread = c.thread
where ($2::uuid is null or s.id = $2) and s.created_at < $3
order by s.conversation_id, s.id;

-- name: sessions_with_ids
-- These sessions ($1), of those that there are.
select s.conversation_id, s.id, s.platform, s.account, s.platform_conversation_id, s.thread, s.user_id,
  s.metadata ->> 'resource' as resource, true as begun, s.status = 'archived' as archived,
  (
    select m.metadata ? 'group'
    from messages m
    where m.conversation_id = s.conversation_id and m.direction = 'inbound'
    order by m.seq
    limit 1
  ) as is_group,
  exists (select from holds h where h.conversation_id = s.conversation_id) as held
from sessions s
where s.id = any ($1::uuid[])
order by s.conversation_id, s.id;

-- name: hold_session
-- Nothing is received in a session, claimed or completed until the transaction ends.
select s.next_seq, s.status = 'active' as active,
  exists (select from holds h where h.conversation_id = s.conversation_id) as held
from sessions s
where s.conversation_id = $1 and s.id = $2
for update of s;

-- name: others_in_session
-- Whether a session has anything that is not to be erased: what others than a person ($3, null: nobody counts) wrote, or
-- what came since a moment ($4). Run after `hold_session`.
select exists (
  select from messages m
  where m.conversation_id = $1 and m.session_id = $2
    and (m.created_at >= $4 or (m.direction = 'inbound' and m.content_type <> 'event' and m.sender_id <> $3))
) as others;

-- name: messages_to_blank
-- What a person ($3) wrote in a session before a moment ($4), and the replies of the turns that took any of it; without a
-- person, or ($5) by their ids, other messages. Those that tell nothing any more are left out.
with answered as materialized (
  select t.id
  from turns t
  where $3::text is not null and t.conversation_id = $1 and t.session_id = $2 and exists (
    select from messages m
    where m.conversation_id = t.conversation_id and m.seq between t.first_seq and t.last_seq and m.sender_id = $3
      and m.created_at < $4
  )
)
select m.id, m.seq
from messages m
where m.conversation_id = $1 and m.session_id = $2 and not coalesce(m.metadata ? 'erased', false)
  and case
    when $5::uuid[] is not null then m.id = any ($5)
    when $3 is null then m.created_at < $4
    when m.direction = 'inbound' then m.sender_id = $3 and m.created_at < $4
    else m.turn_id in (select a.id from answered a)
  end
order by m.seq;

-- name: senders_of
-- Who wrote these messages ($2) of a conversation.
select distinct m.sender_id
from messages m
where m.conversation_id = $1 and m.seq = any ($2::bigint[]) and m.direction = 'inbound' and m.sender_id is not null;

-- name: archives_of_sessions
-- Which archives have something of these sessions.
select distinct p.archive_id
from unnest($1::uuid[]) as i (id)
join sessions s on s.id = i.id
join archived_sessions p on p.conversation_id = s.conversation_id and p.session_id = s.id;

-- name: there_are_archives
-- Which of these archives are not deleted yet.
select id from archives where id = any ($1::uuid[]);

-- name: erase_messages
-- Delete messages of a session that nothing arrives in any more, from a seq ($3) on and at most $4, with their files unless
-- other messages have these too.
with doomed as materialized (
  select m.conversation_id, m.seq, m.attachments, m.metadata
  from messages m
  where m.conversation_id = $1 and m.session_id = $2 and m.seq > $3
    and not exists (select from holds h where h.conversation_id = $1)
  order by m.seq
  limit $4
), refs as materialized (
  select distinct f ->> 'ref' as ref
  from doomed d
  cross join lateral (
    select jsonb_array_elements(d.attachments) as f
    union all
    select jsonb_array_elements(v -> 'attachments') from jsonb_array_elements(d.metadata -> 'versions') v
  ) files
), others as materialized (
  select f ->> 'ref' as ref, max(o.seq) as seq
  from messages o
  cross join lateral (
    select jsonb_array_elements(o.attachments) as f
    union all
    select jsonb_array_elements(v -> 'attachments') from jsonb_array_elements(o.metadata -> 'versions') v
  ) files
  where exists (select from refs) and o.conversation_id = $1 and (o.attachments is not null or o.metadata ? 'versions')
    and o.session_id <> $2 and f ->> 'ref' = any ((select array_agg(r.ref) from refs r)::text[])
  group by 1
), files as materialized (
  select a.conversation_id, a.key, a.content_id, (select o.seq from others o where o.ref = r.ref) as other
  from refs r
  join attachments a on a.conversation_id = $1 and a.key = sha256(convert_to(r.ref, 'UTF8'))
), kept as (
  update attachments a
  set seq = f.other
  from files f
  where f.other is not null and a.conversation_id = f.conversation_id and a.key = f.key
), gone as (
  delete from attachments a
  using files f
  where f.other is null and a.conversation_id = f.conversation_id and a.key = f.key
  returning a.content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select content_id from gone) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
), undelivered as (
  delete from deliveries x using doomed d where x.conversation_id = d.conversation_id and x.seq = d.seq
), deleted as (
  delete from messages m
  using doomed d
  where m.conversation_id = d.conversation_id and m.seq = d.seq
  returning m.seq
)
select count(*) as messages, max(d.seq) as last_seq, (select count(*) from gone) as files
from deleted d;

-- name: erase_session
-- Delete a session whose messages are gone, and what is left of its conversation if it was the last one; else seq goes on
-- where it was. Not returned: it is not there, is on hold, or has messages.
with dead as (
  delete from sessions s
  where s.conversation_id = $1 and s.id = $2 and s.status <> 'active'
    and not exists (select from holds h where h.conversation_id = $1)
    and not exists (
      select from messages m where m.conversation_id = $1 and m.seq < s.next_seq and m.session_id = $2
    )
  returning s.conversation_id, s.id, s.next_seq, s.platform, s.platform_conversation_id
), turns_gone as (
  delete from turns t using dead d where t.conversation_id = d.conversation_id and t.session_id = d.id
), settled as (
  delete from waiting w using dead d where w.conversation_id = d.conversation_id and w.session_id = d.id
), newest as materialized (
  select s.id, s.next_seq
  from dead d
  join sessions s on s.conversation_id = d.conversation_id and s.id <> d.id
  order by s.next_seq desc, s.created_at desc
  limit 1
), went_on as (
  update sessions s
  set next_seq = d.next_seq
  from dead d, newest n
  where s.conversation_id = d.conversation_id and s.id = n.id and s.next_seq < d.next_seq
), last as materialized (
  select d.* from dead d where not exists (select from newest)
), unmoved as (
  delete from moves m
  using last l
  where m.conversation_id = l.conversation_id or (
    m.platform_conversation_id = l.platform_conversation_id
    -- Whose it was before is not noted: somebody else on that platform may be there too.
    and not exists (
      select from sessions o
      where o.platform = l.platform and o.platform_conversation_id = l.platform_conversation_id
        and o.conversation_id <> l.conversation_id
    )
  )
), gone as (
  delete from attachments a using last l where a.conversation_id = l.conversation_id
  returning a.content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select content_id from gone) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
)
select d.id, (select count(*) from gone) as files from dead d;

-- name: blank_messages
-- What single messages ($2) of a conversation ($1) told: the messages stay, without it. A turn that took one of them begins
-- anew, without them, if it runs; and others that quoted them do not any more. Run after `hold_session`.
with doomed as materialized (
  select m.conversation_id, m.seq, m.platform_message_id, m.attachments, m.metadata
  from messages m
  where m.conversation_id = $1 and m.seq = any ($2::bigint[]) and not coalesce(m.metadata ? 'erased', false)
  order by m.seq
  for update of m
), refs as materialized (
  select distinct f ->> 'ref' as ref
  from doomed d
  cross join lateral (
    select jsonb_array_elements(d.attachments) as f
    union all
    select jsonb_array_elements(v -> 'attachments') from jsonb_array_elements(d.metadata -> 'versions') v
  ) files
), others as materialized (
  select f ->> 'ref' as ref, max(o.seq) as seq
  from messages o
  cross join lateral (
    select jsonb_array_elements(o.attachments) as f
    union all
    select jsonb_array_elements(v -> 'attachments') from jsonb_array_elements(o.metadata -> 'versions') v
  ) files
  where exists (select from refs) and o.conversation_id = $1 and (o.attachments is not null or o.metadata ? 'versions')
    and not exists (select from doomed d where d.seq = o.seq) and f ->> 'ref' = any ((select array_agg(r.ref) from refs r)::text[])
  group by 1
), files as materialized (
  select a.conversation_id, a.key, a.content_id, (select o.seq from others o where o.ref = r.ref) as other
  from refs r
  join attachments a on a.conversation_id = $1 and a.key = sha256(convert_to(r.ref, 'UTF8'))
), kept as (
  update attachments a
  set seq = f.other
  from files f
  where f.other is not null and a.conversation_id = f.conversation_id and a.key = f.key
), gone as (
  delete from attachments a
  using files f
  where f.other is null and a.conversation_id = f.conversation_id and a.key = f.key
  returning a.content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select content_id from gone) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
), undelivered as (
  delete from deliveries x using doomed d where x.conversation_id = d.conversation_id and x.seq = d.seq
), turned as (
  update turns t
  set agent_request_id = null,
    error = case when t.status = 'running' then 'what was asked was erased' end,
    status = case when t.status = 'running' then 'superseded' else t.status end,
    outcome = case when t.status = 'running' then 'superseded' else t.outcome end,
    finished_at = coalesce(t.finished_at, clock_timestamp())
  where t.conversation_id = $1
    and exists (select from doomed d where d.seq between t.first_seq and t.last_seq)
), quoting as (
  update messages m
  set metadata = m.metadata - 'reply_to'
  where m.conversation_id = $1 and m.direction = 'inbound' and jsonb_typeof(m.metadata -> 'reply_to') = 'object'
    and m.metadata #>> '{reply_to,message_id}' = any ((select array_agg(d.platform_message_id) from doomed d)::text[])
    and not exists (select from doomed d where d.seq = m.seq)
), blanked as (
  update messages m
  set content_text = '', sender_id = null, platform_message_id = null, agent_request_id = null, attachments = null,
    event_key = case when m.event_key is not null then 'erased:' || m.id end,
    -- To an agent, and on every page, it is one that its sender deleted.
    metadata = '{"erased": true, "versions": [{"deleted": true}]}'::jsonb
      || case when m.metadata ? 'group' then '{"group": true}'::jsonb else '{}' end
  from doomed d
  where m.conversation_id = d.conversation_id and m.seq = d.seq
  returning m.id
)
select count(*) as messages, (select count(*) from gone) as files from blanked b;

-- name: blank_session
-- A session with others tells no more who ($3) began it, what was summed up, and what waits for a yes. Run after
-- `hold_session`.
update sessions
set user_id = case when user_id = $3 or $3::text is null then null else user_id end,
  metadata = metadata - '{approval,approval_asked,summary,follows}'::text[]
where conversation_id = $1 and id = $2
returning id;

-- name: person
-- What is known of a person, on one account or ($2 null) all of a platform.
select platform, account, platform_user_id, display_name, username, locale, aliases, metadata, first_seen, last_seen
from users
where platform = $1 and ($2::text is null or account = $2) and platform_user_id = $3
order by account;

-- name: erase_people
-- Forget people.
delete from users u
using unnest($1::text[], $2::text[], $3::text[]) as i (platform, account, platform_user_id)
where u.platform = i.platform and u.account = i.account and u.platform_user_id = i.platform_user_id
returning u.platform;

-- name: contents_in
-- What files of these conversations consist of.
select distinct content_id from attachments where conversation_id = any ($1::uuid[]) and content_id is not null;

-- name: doom_erased
-- These contents are not kept for the hour that others are: nothing has them any more.
update contents c
set unused_since = now() - interval '2 hours'
where c.id = any ($1::uuid[]) and c.unused_since is not null
  and not exists (select from attachments a where a.content_id = c.id)
returning c.id;

-- name: undeleted_contents
-- Of these contents, those that nothing has and that are still there.
select c.id
from contents c
where c.id = any ($1::uuid[]) and not exists (select from attachments a where a.content_id = c.id);
