// Starts the page: shows the facts about the index, then the views.

import { askForTokensWith, getJson } from "./api.js";
import { Catalogue } from "./catalogue.js";
import { Detail } from "./detail.js";
import { answer, byId, onlyLatest, plural, statusLine } from "./dom.js";
import { KeptVideos } from "./kept_videos.js";
import { Recommendations } from "./recommendations.js";
import { askForToken } from "./token.js";
import { Upload } from "./upload.js";

const line = statusLine(byId("index-status"));
const next = onlyLatest();
const watched = new KeptVideos("raypipe.watched");
const disliked = new KeptVideos("raypipe.disliked");
const views = { watched, disliked, open: (video) => detail.open(video), seen };
const catalogue = new Catalogue(views);
const recommendations = new Recommendations(views);
const detail = new Detail(views);
const upload = new Upload(views);

let version = null;

// Called with the version of each ranking. If the header names another version, the server has loaded a new one.
function seen(other) {
  if (version !== null && other !== version) describe(() => {});
}

function describe(then) {
  return answer({
    signal: next(),
    line,
    busy: byId("index-facts"),
    ask: (options) => getJson("v1/index", options),
    show: (index) => {
      showIndex(index);
      then();
    },
    retry: () => describe(then),
  });
}

function showIndex(index) {
  version = index.version;
  line.clear();
  byId("index-size").textContent = plural(index.num_videos, "video");
  byId("index-version").textContent = index.version;
  byId("index-kind").textContent = `${index.kind}, ${index.dim} dimensions`;
  for (const view of [catalogue, recommendations, detail, upload]) view.describe(index);
}

askForTokensWith(askForToken);
describe(() => {
  catalogue.search();
  recommendations.refresh();
  detail.followAddress();
});
