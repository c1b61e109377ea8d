// The gallery's records in IndexedDB: {id, created, blob, settings, report}. They never leave this browser.

const open = new Promise((resolve, reject) => {
  const opening = indexedDB.open("calotype", 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("images", { keyPath: "id" }).createIndex("created", "created");
  };
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});
open.catch(() => {}); // each use reports it

async function run(mode, work) {
  const database = await open;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("images", mode);
    const request = work(transaction.objectStore("images"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

export const put = (record) => run("readwrite", (images) => images.put(record));
export const remove = (id) => run("readwrite", (images) => images.delete(id));
export const clear = () => run("readwrite", (images) => images.clear());
export const all = () => run("readonly", (images) => images.index("created").getAll());
